// Every kernel of this directory, for the instruction set that SUBQUAD_ISA names.
#include "block_step.h"
#include "drive.h"
#include "favor.h"
#include "favor_backward.h"
#include "favor_map.h"
#include "isa.h"
#include "probe.h"
#include "step.h"

SUBQUAD_BEGIN

SUBQUAD_ENTRY(probe, subquad_probe) {
#if defined(__AVX512F__)
    *call->lanes = 16;
#elif defined(__AVX2__)
    *call->lanes = 8;
#else
    *call->lanes = 4;
#endif
    *call->keeps_nan = call->nan != call->nan;
    *call->keeps_order = (call->one + call->tiny) - call->one == 0;
    return SUBQUAD_DONE;
}

SUBQUAD_ENTRY(linear_forward, subquad_linear) {
    return call->directions ? drive_forward<ForwardFrom<FavorReader>>(*call)
                            : drive_forward<Forward>(*call);
}

SUBQUAD_ENTRY(linear_backward, subquad_linear) { return drive_backward(*call); }

SUBQUAD_ENTRY(linear_step, subquad_linear_step) {
    const bool done = share_out<Step>(*call, call->batch * call->heads,
                                      [](Step& step, int64_t head) { step.take(head); });
    return done ? SUBQUAD_DONE : SUBQUAD_OUT_OF_MEMORY;
}

SUBQUAD_ENTRY(block_step, subquad_block_step) { return run_block_step(*call); }

SUBQUAD_ENTRY(favor_forward, subquad_favor) { return drive_favor(*call); }

SUBQUAD_ENTRY(favor_backward, subquad_favor) { return drive_favor_backward(*call); }

SUBQUAD_ENTRY(favor_map, subquad_favor_map) { return drive_favor_map(*call); }

SUBQUAD_END
