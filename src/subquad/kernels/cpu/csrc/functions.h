// Every entry point of kernels.cpp, one line each: F(name, structure that it takes).
#pragma once

#include "linear_attention.h"
#include "probe.h"

#define SUBQUAD_FUNCTIONS(F)              \
    F(probe, subquad_probe)               \
    F(linear_forward, subquad_linear)     \
    F(linear_backward, subquad_linear)    \
    F(linear_step, subquad_linear_step)   \
    F(block_step, subquad_block_step)     \
    F(favor_forward, subquad_favor)       \
    F(favor_backward, subquad_favor)      \
    F(favor_map, subquad_favor_map)
