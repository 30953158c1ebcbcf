// One long sequence with few heads over many threads: time is cut into stretches.
#pragma once

#include "chunk.h"

SUBQUAD_BEGIN

// Time cut into ``count`` stretches of ``length`` tokens, which is a multiple of CHUNK.
struct Segments {
    int64_t count, length, time;

    Segments(int64_t time_, int64_t count_) : time(time_) {
        length = ((time + count_ - 1) / count_ + CHUNK - 1) / CHUNK * CHUNK;
        count = (time + length - 1) / length;
    }
    int64_t begin(int64_t s) const { return s * length; }
    int64_t end(int64_t s) const { return smaller(time, (s + 1) * length); }
};

// How many stretches: one unless the heads leave more than a third of the threads idle, for a
// second pass over the keys costs about that much.
template <class Call>
inline int64_t stretches(const Call& c) {
    const int64_t heads = c.batch * c.heads, rounds = (heads + c.threads - 1) / c.threads;
    if (3 * heads >= 2 * rounds * c.threads || !c.parallel) return 1;
    return (c.threads + heads - 1) / heads;
}

SUBQUAD_END
