// What Python sees of the library: which instruction sets run here, the one in use, and one
// function for every line of functions.h, handed to the build for that instruction set.
#include <atomic>
#include <cstring>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "functions.h"
#include "isa.h"

#define SUBQUAD_HIDDEN __attribute__((visibility("hidden")))
#define SUBQUAD_PUBLIC extern "C" __attribute__((visibility("default")))

// Raise this with every change to what Python relies on: a function, or what a member means (its
// size is looked at besides). library.py names the version that it was written for, and refuses
// any other.
constexpr int ABI_VERSION = 3;

#define SUBQUAD_DECLARE(name, type)                            \
    SUBQUAD_HIDDEN int subquad_##name##_baseline(const type*); \
    SUBQUAD_HIDDEN int subquad_##name##_avx2(const type*);     \
    SUBQUAD_HIDDEN int subquad_##name##_avx512(const type*);
extern "C" {
SUBQUAD_FUNCTIONS(SUBQUAD_DECLARE)
}

namespace {

bool runs_baseline() { return true; }

// These ask the processor by CPUID, and whether the system saves the wide registers by XGETBV.
#ifdef SUBQUAD_HAS_avx2
bool runs_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif
#ifdef SUBQUAD_HAS_avx512
bool runs_avx512() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("fma");
}
#endif

struct Build {
    const char* name;
    bool (*runs)();
#define SUBQUAD_MEMBER(name, type) int (*name)(const type*);
    SUBQUAD_FUNCTIONS(SUBQUAD_MEMBER)
};

#define SUBQUAD_BASELINE_POINTER(name, type) subquad_##name##_baseline,
#define SUBQUAD_AVX2_POINTER(name, type) subquad_##name##_avx2,
#define SUBQUAD_AVX512_POINTER(name, type) subquad_##name##_avx512,

// Narrowest first.
const Build builds[] = {
    {"baseline", runs_baseline, SUBQUAD_FUNCTIONS(SUBQUAD_BASELINE_POINTER)},
#ifdef SUBQUAD_HAS_avx2
    {"avx2", runs_avx2, SUBQUAD_FUNCTIONS(SUBQUAD_AVX2_POINTER)},
#endif
#ifdef SUBQUAD_HAS_avx512
    {"avx512", runs_avx512, SUBQUAD_FUNCTIONS(SUBQUAD_AVX512_POINTER)},
#endif
};

const Build* widest() {
    const Build* last = builds;
    for (const Build& build : builds)
        if (build.runs()) last = &build;
    return last;
}

// Changed by subquad_use alone, which the tests call between two kernels.
std::atomic<const Build*> chosen{widest()};

template <class Call>
int guarded(int (*function)(const Call*), const Call* call) {
    try {
        return function(call);
    } catch (const std::bad_alloc&) {
        return SUBQUAD_OUT_OF_MEMORY;
    } catch (...) {
        return SUBQUAD_FAILED;
    }
}

}  // namespace

SUBQUAD_PUBLIC int subquad_abi_version() { return ABI_VERSION; }

// The builds that run on this machine, narrowest first, with blanks between.
SUBQUAD_PUBLIC const char* subquad_instruction_sets() {
    static const std::string names = [] {
        std::string all;
        for (const Build& build : builds)
            if (build.runs()) all += (all.empty() ? "" : " ") + std::string(build.name);
        return all;
    }();
    return names.c_str();
}

SUBQUAD_PUBLIC const char* subquad_instruction_set() { return chosen.load()->name; }

// Use the build of this name from now on; 0 where there is none, or it does not run here.
SUBQUAD_PUBLIC int subquad_use(const char* name) {
    for (const Build& build : builds)
        if (!std::strcmp(build.name, name) && build.runs()) {
            chosen = &build;
            return 1;
        }
    return 0;
}

// As GOMP_parallel, for a process in which torch brought no OpenMP runtime: threads that live for
// one call, so none is left to spin. fn must share out the work by itself (by a counter), for
// where the system refuses a thread, fewer run.
SUBQUAD_PUBLIC void subquad_parallel(void (*fn)(void*), void* argument, unsigned threads,
                                     unsigned /* flags */) {
    std::vector<std::thread> others;
    try {
        others.reserve(threads);
        while (others.size() + 1 < threads) others.emplace_back(fn, argument);
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {
    }
    fn(argument);
    for (std::thread& other : others) other.join();
}

// subquad_<name>_bytes: the size of the structure, so that Python notices another declaration.
#define SUBQUAD_DISPATCH(name, type)                                        \
    SUBQUAD_PUBLIC int subquad_##name(const struct type* call) {            \
        return guarded(chosen.load(std::memory_order_relaxed)->name, call); \
    }                                                                       \
    SUBQUAD_PUBLIC int subquad_##name##_bytes() { return int(sizeof(struct type)); }
SUBQUAD_FUNCTIONS(SUBQUAD_DISPATCH)
