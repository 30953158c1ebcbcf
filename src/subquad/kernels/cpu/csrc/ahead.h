// Memory asked for ahead of its use, a few lines between the tiles of the products: all at once
// they would fill the line buffers and the products would wait for them.
#pragma once

#include "simd.h"

SUBQUAD_BEGIN

class Ahead {
  public:
    void clear() { count_ = at_ = row_ = line_ = 0; }

    // ``rows`` rows of ``bytes`` each, ``stride`` bytes apart. Whole numbers, for a pointer outside
    // of its array must not be formed; to ask for an address that is not there is no fault.
    // What is more than there is room for is not asked for, which costs time and nothing else.
    void add(uintptr_t start, int64_t stride, int rows, int64_t bytes) {
        const int lines = int((bytes + LINE - 1) / LINE);
        if (lines == 0 || rows == 0 || count_ == MOST) return;
        parts_[count_++] = {start, stride, rows, lines};
    }

    // Ask for the next few lines.
    SUBQUAD_INLINE void ask(int lines) {
        for (; lines > 0 && at_ < count_; lines--) {
            const Part& part = parts_[at_];
            const uintptr_t row = part.start + uintptr_t(row_ * part.stride);
            __builtin_prefetch(reinterpret_cast<const void*>(row + uintptr_t(line_ * LINE)));
            if (++line_ < part.lines) continue;
            line_ = 0;
            if (++row_ < part.rows) continue;
            row_ = 0;
            at_++;
        }
    }

  private:
    static constexpr int64_t LINE = 64;
    static constexpr int MOST = 8;
    struct Part {
        uintptr_t start;
        int64_t stride;
        int rows, lines;
    };
    Part parts_[MOST];
    int count_ = 0, at_ = 0, row_ = 0, line_ = 0;
};

SUBQUAD_END
