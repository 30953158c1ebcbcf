// Small matrix products out of the nearest cache, on row-major buffers whose rows are padded.
#pragma once

#include "ahead.h"

SUBQUAD_BEGIN

// What a is: element (i, l) stands at a[i * row + l * column].
struct Left {
    const float* a;
    int64_t row, column;
};

// Registers hold M x N accumulators, N vectors of b and one broadcast of a.
template <int M, int N, bool ADD>
SUBQUAD_INLINE void tile(Left left, const float* b, int64_t b_stride, int depth, float* c,
                         int64_t c_stride) {
    vf sum[M][N];
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) sum[i][j] = ADD ? load(c + i * c_stride + j * LANES) : vf{};
    const float* a = left.a;
    for (int l = 0; l < depth; l++, a += left.column, b += b_stride) {
        vf right[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) right[j] = load(b + j * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) {
            const vf x = splat(a[i * left.row]);
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) sum[i][j] += x * right[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) store(c + i * c_stride + j * LANES, sum[i][j]);
}

// Rows of a tile of N vectors: enough products in flight to hide their latency, few enough to stay
// in the registers.
template <int N>
constexpr int tile_rows() {
#if SUBQUAD_LANES == 16
    return N == 4 ? 6 : N == 3 ? 8 : 12;
#elif defined(__AVX2__)
    return N == 2 ? 6 : 8;
#else
    return N == 2 ? 4 : 8;
#endif
}

#if SUBQUAD_LANES == 16
constexpr int VECTORS = 4;
#else
constexpr int VECTORS = 2;
#endif

// Lines asked for ahead before each tile; a tile takes long enough for so many to arrive.
constexpr int LINES_A_TILE = 24;

// Which part of a is not 0; l runs over the depth.
enum class Part {
    WHOLE,
    DEPTH_TO_ROW,    // a is 0 for l > i
    DEPTH_FROM_ROW,  // a is 0 for l < i
};

// All of one product but its columns.
struct Factors {
    int rows, depth;
    Left left;
    const float* b;
    int64_t b_stride;
    float* c;
    int64_t c_stride;
    Part part;
    Ahead* ahead;
};

template <int M, int N, bool ADD>
SUBQUAD_INLINE void tile_at(int i, int j, const Factors& f) {
    if (f.ahead) f.ahead->ask(LINES_A_TILE);
    const int first = f.part == Part::DEPTH_FROM_ROW ? i : 0;
    const int last = f.part == Part::DEPTH_TO_ROW && i + M < f.depth ? i + M : f.depth;
    const Left a{f.left.a + i * f.left.row + first * f.left.column, f.left.row, f.left.column};
    tile<M, N, ADD>(a, f.b + first * f.b_stride + j, f.b_stride, last - first,
                    f.c + i * f.c_stride + j, f.c_stride);
}

// All rows of N vectors of columns, from column j on.
template <int N, bool ADD>
inline void columns_of_tiles(int j, const Factors& f) {
    constexpr int M = tile_rows<N>();
    int i = 0;
    for (; i + M <= f.rows; i += M) tile_at<M, N, ADD>(i, j, f);
    if (M > 4)
        for (; i + 4 <= f.rows; i += 4) tile_at<4, N, ADD>(i, j, f);
    for (; i + 2 <= f.rows; i += 2) tile_at<2, N, ADD>(i, j, f);
    for (; i < f.rows; i++) tile_at<1, N, ADD>(i, j, f);
}

// c (rows x columns) = or += a (rows x depth) b (depth x columns); columns is a multiple of LANES.
// Only whole blocks of what ``part`` leaves out are skipped: a must hold its zeros all the same.
template <bool ADD>
inline void product(int rows, int columns, int depth, Left left, const float* b, int64_t b_stride,
                    float* c, int64_t c_stride, Part part = Part::WHOLE, Ahead* ahead = nullptr) {
    const Factors f{rows, depth, left, b, b_stride, c, c_stride, part, ahead};
    for (int j = 0; j < columns;) {
        int vectors = (columns - j) / LANES;
        if (vectors > VECTORS) vectors = VECTORS;
        switch (vectors) {
            case 1: columns_of_tiles<1, ADD>(j, f); break;
            case 2: columns_of_tiles<2, ADD>(j, f); break;
#if SUBQUAD_LANES == 16
            case 3: columns_of_tiles<3, ADD>(j, f); break;
            default: columns_of_tiles<4, ADD>(j, f);
#endif
        }
        j += vectors * LANES;
    }
}

// Of c = a b the columns j <= i, in whole vectors; the rest of c is left as it is.
inline void lower_product(int rows, int depth, Left left, const float* b, int64_t b_stride,
                          float* c, int64_t c_stride, Ahead* ahead = nullptr) {
    for (int i = 0; i < rows; i += LANES) {
        const int block = rows - i < LANES ? rows - i : LANES;
        product<false>(block, i + LANES, depth, {left.a + i * left.row, left.row, left.column}, b,
                       b_stride, c + i * c_stride, c_stride, Part::WHOLE, ahead);
    }
}

SUBQUAD_END
