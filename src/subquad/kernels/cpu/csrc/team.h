// Work shared out over the threads of torch's own OpenMP runtime.
#pragma once

#include <atomic>

#include "linear_attention.h"
#include "simd.h"

SUBQUAD_BEGIN

template <class Call, class Worker, class Step>
struct Job {
    const Call& call;
    const Step& step;
    int64_t units;
    std::atomic<int64_t> next;
    std::atomic<bool> failed;
};

// Do step(worker, unit) for all units. Each thread has a worker of its own and takes the next unit
// that is free, so any number of threads will do, even fewer than asked for. Returns false where a
// worker had no memory. Nothing may throw in here.
template <class Worker, class Call, class Step>
inline bool share_out(const Call& call, int64_t units, const Step& step) {
    Job<Call, Worker, Step> job{call, step, units, {0}, {false}};
    auto body = [](void* argument) {
        auto& job = *static_cast<Job<Call, Worker, Step>*>(argument);
        Worker worker(job.call);
        if (!worker.ok()) {
            job.failed = true;
            return;
        }
        for (int64_t unit; (unit = job.next.fetch_add(1)) < job.units;) job.step(worker, unit);
    };
    const int64_t threads = call.threads < units ? call.threads : units;
    if (threads > 1 && call.parallel)
        call.parallel(body, &job, unsigned(threads), 0);
    else
        body(&job);
    return !job.failed;
}

SUBQUAD_END
