// Between the two networks of a bilevel step, so that it need not wait for the host:
//
//     seeds      s = factors[0] w                  what the proxy's backward begins with, by the rater's weights w
//     d_weights  d = factors[1] l + factors[2] e'(w) / B,    e(w) = 0.01 (w ln(w + f) + (1 - w) ln(1 - w + f)), f = 1e-8
//
// w, l, s, d: [B] in float. `factors` is in memory, so that a recorded step can be repeated with others. Source: method.md,
// eq. 9; the entropy term as released (upstream.md, A11).
//
// Threads: 256 a block, one sample each. Some hundred bytes in all. No shared memory.
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr float REGULARISATION = 0.01f;
constexpr float FLOOR = 1e-8f;

KERNEL(rater_loss_seeds, THREADS, float *seeds, const float *weights, const float *factors, uint32_t samples) {
    unsigned at = blockIdx.x * THREADS + threadIdx.x;
    if (at < samples) seeds[at] = factors[0] * weights[at];
}

KERNEL(
    rater_loss_backward, THREADS, float *d_weights, const float *losses, const float *weights, const float *factors,
    uint32_t samples) {
    unsigned at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= samples) return;
    float d = factors[1] * losses[at], entropy = factors[2];
    if (entropy != 0.0f) {
        float w = weights[at], yes = w + FLOOR, no = 1.0f - w + FLOOR;
        float slope = logf(yes) + w / yes - logf(no) - (1.0f - w) / no;
        d += entropy * (REGULARISATION / float(samples)) * slope;
    }
    d_weights[at] = d;
}
