/* One step's gradients of all parameters, added to a window's totals in one pass: see accumulate.py for the formula.
 *
 * Plain C99 with the __atomic builtins of gcc and clang, and no header of torch or OpenMP: compiled in a fraction of a
 * second, and one file serves every torch. Must be compiled without -ffast-math: NaN and infinity have a meaning here.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { EVENT = 2, NONFINITE = 4 };

/* Chunks a thread claims at a time: enough to pay for the claim, few enough to share out what other work disturbs. */
enum { CLAIM = 8 };

struct step {
    const int64_t *addresses; /* (M,) where each gradient lies */
    const int64_t *members;   /* (M, 3) size, flat offset, slot */
    const uint8_t *kinds;     /* (M,) dtype: 0 float32, 1 bfloat16, 2 float16, 3 float64 */
    const int32_t *owner;     /* (C,) the gradient that a chunk belongs to */
    const int64_t *begin;     /* (C,) where in that gradient the chunk begins */
    int64_t chunks, chunk;    /* C, and elements in a chunk */
    float *grad_sum, *grad_sumsq;
    int16_t *events, *votes;
    int32_t *flags;
    double threshold, scale;
    int32_t weight;
    int64_t claimed;
};

static inline float from_float32(float value) { return value; }

static inline double from_float64(double value) { return value; }

static inline float from_bfloat16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* By integer arithmetic, which every compiler vectorises; a subnormal is made normal and moved down again, so that no
 * subnormal float32 appears that a process set to flush them would lose. */
static inline float from_float16(uint16_t half) {
    const uint32_t exponent = half & 0x7c00u;
    uint32_t bits = ((uint32_t)(half & 0x7fffu) << 13) + (112u << 23);
    bits += exponent == 0x7c00u ? 112u << 23 : exponent == 0 ? 1u << 23 : 0u;
    const uint32_t lowest = 113u << 23;
    float value, least;
    memcpy(&value, &bits, 4);
    memcpy(&least, &lowest, 4);
    value = exponent == 0 ? value - least : value;
    memcpy(&bits, &value, 4);
    bits |= (uint32_t)(half & 0x8000u) << 16;
    memcpy(&value, &bits, 4);
    return value;
}

/* Rounded once where the processor can, as torch's addcmul_ is there. */
static inline float plus_product(float sum, float a, float b) {
#ifdef FP_FAST_FMAF
    return fmaf(a, b, sum);
#else
    return sum + a * b;
#endif
}

/* ADDING is the constant 1 or 0: whether all is summed, or only events are counted. */
#define LOOP(READ, WIDE, MAGNITUDE, ADDING)                                                                           \
    for (int64_t i = 0; i < count; i++) {                                                                             \
        const WIDE wide = READ(grad[i]) * scale;                                                                      \
        const float narrow = (float)wide;                                                                             \
        const int32_t finite = fabsf(narrow) <= FLT_MAX; /* false for NaN too */                                      \
        const int32_t event = finite & (MAGNITUDE(wide) > threshold);                                                 \
        events[i] = (int16_t)(events[i] + event);                                                                     \
        if (ADDING) {                                                                                                 \
            const float kept = finite ? narrow : 0.0f;                                                                \
            const int32_t vote = wide > 0 ? event : -event;                                                           \
            grad_sum[i] += kept * factor;                                                                             \
            grad_sumsq[i] = plus_product(grad_sumsq[i], kept * factor, kept);                                         \
            votes[i] = (int16_t)(votes[i] + (int16_t)(vote * weight));                                                \
        }                                                                                                             \
        loud |= event;                                                                                                \
        broken |= finite ^ 1;                                                                                         \
    }

#define PASS(NAME, STORED, READ, WIDE, MAGNITUDE)                                                                     \
    static int32_t NAME(const STORED *restrict grad, int64_t count, float *restrict grad_sum,                         \
                        float *restrict grad_sumsq, int16_t *restrict events, int16_t *restrict votes,                \
                        WIDE threshold, WIDE scale, int32_t weight) {                                                 \
        const float factor = (float)weight;                                                                           \
        int32_t loud = 0, broken = 0;                                                                                 \
        if (weight) {                                                                                                 \
            LOOP(READ, WIDE, MAGNITUDE, 1)                                                                            \
        } else {                                                                                                      \
            LOOP(READ, WIDE, MAGNITUDE, 0)                                                                            \
        }                                                                                                             \
        return loud * EVENT | broken * NONFINITE;                                                                     \
    }

PASS(add_float32, float, from_float32, float, fabsf)
PASS(add_bfloat16, uint16_t, from_bfloat16, float, fabsf)
PASS(add_float16, uint16_t, from_float16, float, fabsf)
PASS(add_float64, double, from_float64, double, fabs)

static void add_chunk(const struct step *step, int64_t chunk) {
    const int64_t member = step->owner[chunk], begin = step->begin[chunk];
    const int64_t left = step->members[3 * member] - begin, at = step->members[3 * member + 1] + begin;
    const int64_t count = left < step->chunk ? left : step->chunk;
    const char *grad = (const char *)(intptr_t)step->addresses[member];
    float *grad_sum = step->grad_sum + at, *grad_sumsq = step->grad_sumsq + at;
    int16_t *events = step->events + at, *votes = step->votes + at;
    const float threshold = (float)step->threshold, scale = (float)step->scale;
    int32_t bits;
    switch (step->kinds[member]) {
    case 0:
        bits = add_float32((const float *)grad + begin, count, grad_sum, grad_sumsq, events, votes, threshold, scale,
                           step->weight);
        break;
    case 1:
        bits = add_bfloat16((const uint16_t *)grad + begin, count, grad_sum, grad_sumsq, events, votes, threshold,
                            scale, step->weight);
        break;
    case 2:
        bits = add_float16((const uint16_t *)grad + begin, count, grad_sum, grad_sumsq, events, votes, threshold,
                           scale, step->weight);
        break;
    default:
        bits = add_float64((const double *)grad + begin, count, grad_sum, grad_sumsq, events, votes, step->threshold,
                           step->scale, step->weight);
    }
    if (bits)
        __atomic_fetch_or(step->flags + step->members[3 * member + 2], bits, __ATOMIC_RELAXED);
}

/* What each thread runs, alone or in a team: it claims chunks until none is left. */
void gradtrace_accumulate(void *given) {
    struct step *step = given;
    for (;;) {
        const int64_t first = __atomic_fetch_add(&step->claimed, CLAIM, __ATOMIC_RELAXED);
        if (first >= step->chunks)
            return;
        const int64_t end = first + CLAIM < step->chunks ? first + CLAIM : step->chunks;
        for (int64_t chunk = first; chunk < end; chunk++)
            add_chunk(step, chunk);
    }
}
