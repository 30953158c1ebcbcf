// What a build of kernels.cpp says of itself, for the tests: is it the one asked for, and do its
// flags keep the arithmetic that the kernels rely on?
#pragma once

#include <cstdint>

extern "C" {

struct subquad_probe {
    float nan, one, tiny;  // in: NaN; 1; 2^-24. Given at run time, so that nothing is folded
    int32_t* lanes;        // out: floats in the widest vector
    int32_t* keeps_nan;    // out: 1 where x != x still finds NaN
    int32_t* keeps_order;  // out: 1 where (1 + tiny) - 1 is rounded as written
};
}
