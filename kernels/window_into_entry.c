/* One window's totals added to an entry's sums in one pass: see window_into_entry.py for the formula.
 *
 * Must be compiled without -ffast-math and without contraction: the sums have the bits of numpy's.
 */
#include <stdint.h>

struct sums {
    const float *window_sum, *window_square;
    const int16_t *window_events, *window_signs;
    float *grad_sum, *grad_sumsq, *window_sumsq;
    uint32_t *events;
    int32_t *votes, *window_votes;
    int64_t size;
};

void gradtrace_add_window(void *given) {
    const struct sums *sums = given;
    const float *restrict window_sum = sums->window_sum, *restrict window_square = sums->window_square;
    const int16_t *restrict window_events = sums->window_events, *restrict window_signs = sums->window_signs;
    float *restrict grad_sum = sums->grad_sum, *restrict grad_sumsq = sums->grad_sumsq;
    float *restrict window_sumsq = sums->window_sumsq;
    uint32_t *restrict events = sums->events;
    int32_t *restrict votes = sums->votes, *restrict window_votes = sums->window_votes;
    for (int64_t i = 0; i < sums->size; i++) {
        const float sum = window_sum[i];
        grad_sum[i] += sum;
        grad_sumsq[i] += window_square[i];
        window_sumsq[i] += sum * sum;
        events[i] += (uint32_t)window_events[i];
        votes[i] += window_signs[i];
        window_votes[i] += (sum > 0.0f) - (sum < 0.0f);
    }
}
