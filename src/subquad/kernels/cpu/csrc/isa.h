// One source, compiled once for each instruction set: what keeps the builds apart.
//
// CMake compiles kernels.cpp several times, each with other -m flags and another SUBQUAD_ISA
// (baseline, avx2, avx512). What is inline in a header would get the same linker name in each of
// them, and the linker would keep one: perhaps the one with AVX-512 in it, for all. Therefore
//
//   SUBQUAD_BEGIN ... SUBQUAD_END   stand in place of namespace subquad { ... } in every header;
//   SUBQUAD_ENTRY(name, type)       begins an entry point, inside SUBQUAD_BEGIN:
//                                   SUBQUAD_ENTRY(fill, subquad_fill) { ...; return SUBQUAD_DONE; }
//                                   defines int subquad_fill_<isa>(const subquad_fill* call).
//
// A new entry point also needs its line in functions.h; Python then calls subquad_<name>, which
// library.cpp hands to the build for the chosen instruction set.
//
// Structures that Python fills are declared outside of SUBQUAD_BEGIN, in extern "C", once.
// Templates and inline functions of the standard library are not in our namespace: use none that
// the compiler may leave as a function of its own (containers, std::thread, iostream, std::string).
// <cmath>, <cstring>, <atomic> and std::min on numbers are inlined; a test looks at what was not.
#pragma once

#ifndef SUBQUAD_ISA
#define SUBQUAD_ISA baseline  // for editors and checkers; CMake always says which
#endif

#define SUBQUAD_BEGIN    \
    namespace subquad {  \
    namespace SUBQUAD_ISA {
#define SUBQUAD_END \
    }               \
    }

#define SUBQUAD_JOIN_(name, isa) subquad_##name##_##isa
#define SUBQUAD_JOIN(name, isa) SUBQUAD_JOIN_(name, isa)  // expands isa before joining
#define SUBQUAD_ENTRY(name, type) \
    extern "C" __attribute__((visibility("hidden"))) int SUBQUAD_JOIN(name, SUBQUAD_ISA)(const type* call)

// What an entry point returns. Exceptions become one of these in library.cpp, but must not leave a
// function that runs inside `parallel`.
enum { SUBQUAD_DONE = 0, SUBQUAD_OUT_OF_MEMORY = 1, SUBQUAD_FAILED = 2 };
