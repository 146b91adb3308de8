// Between the two networks of a bilevel step, so that it need not wait for the host:
//
//     seeds      s = factors[0] w                  what the proxy's backward begins with, by the rater's weights w
//     d_weights  d = factors[1] c + factors[2] e'(w) / B,    e(w) = 0.01 (w ln(w + f) + (1 - w) ln(1 - w + f)), f = 1e-8
//     standardise  c less the mean over the batch, and over the deviation
//     regression   d = 2 factor (logit - t),  t = (kept - share c - mean) / deviation: the running average of -c, standardised
//
// w, c, s, d: [B] in float; for a c that is not finite the mean of the others by weight stands in, which has no gradient through
// a softmax. `factors` and `corpus` are in memory, so that a recorded
// step can be repeated with others. Source: method.md, the table of rules; the entropy term as released (upstream.md, A11).
//
// Threads: 256 a block, one sample each; one block where there are sums over a batch. Some hundred bytes in all.
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr float REGULARISATION = 0.01f;
constexpr float FLOOR = 1e-8f;

KERNEL(rater_loss_seeds, THREADS, float *seeds, const float *weights, const float *factors, uint32_t samples) {
    unsigned at = blockIdx.x * THREADS + threadIdx.x;
    if (at < samples) seeds[at] = factors[0] * weights[at];
}

KERNEL(
    rater_loss_backward, THREADS, float *d_weights, const float *constants, const float *weights, const float *factors,
    uint32_t samples) {
    SHARED_ARRAY(float, scratch, [THREADS / WARP]);
    float total = 0.0f, sum = 0.0f;
    for (unsigned at = threadIdx.x; at < samples; at += THREADS) {
        if (isfinite(constants[at])) total += weights[at], sum += weights[at] * constants[at];
    }
    total = block_reduce<THREADS>(total, scratch);
    sum = block_reduce<THREADS>(sum, scratch);
    float neutral = total > 0.0f ? sum / total : 0.0f, entropy = factors[2];
    for (unsigned at = threadIdx.x; at < samples; at += THREADS) {
        float d = factors[1] * (isfinite(constants[at]) ? constants[at] : neutral);
        if (entropy != 0.0f) {
            float w = weights[at], yes = w + FLOOR, no = 1.0f - w + FLOOR;
            float slope = logf(yes) + w / yes - logf(no) - (1.0f - w) / no;
            d += entropy * (REGULARISATION / float(samples)) * slope;
        }
        d_weights[at] = d;
    }
}

KERNEL(rater_loss_standardise, THREADS, float *to, const float *constants, uint32_t samples, uint32_t deviation) {
    SHARED_ARRAY(float, scratch, [THREADS / WARP]);
    float count = 0.0f, sum = 0.0f, squares = 0.0f;
    for (unsigned at = threadIdx.x; at < samples; at += THREADS) {
        if (isfinite(constants[at])) count += 1.0f, sum += constants[at];
    }
    count = fmaxf(block_reduce<THREADS>(count, scratch), 1.0f);
    float mean = block_reduce<THREADS>(sum, scratch) / count;
    for (unsigned at = threadIdx.x; at < samples; at += THREADS) {
        float rest = constants[at] - mean;
        if (isfinite(constants[at])) squares += rest * rest;
    }
    float spread = sqrtf(block_reduce<THREADS>(squares, scratch) / count);
    float factor = deviation == 0 ? 1.0f : spread > 0.0f ? 1.0f / spread : 0.0f;
    for (unsigned at = threadIdx.x; at < samples; at += THREADS) {
        to[at] = isfinite(constants[at]) ? (constants[at] - mean) * factor : constants[at];
    }
}

KERNEL(
    rater_loss_regression, THREADS, float *d_logits, float *targets, const float *logits, const float *constants,
    const float *averages, const float *corpus, uint32_t samples) {
    unsigned at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= samples) return;
    float constant = constants[at];
    bool counts = isfinite(constant);
    float target = (averages[2 * at] - averages[2 * at + 1] * constant - corpus[0]) * corpus[1];
    targets[at] = counts ? target : nanf("");
    d_logits[at] = counts ? 2.0f * corpus[2] * (logits[at] - target) : 0.0f;
}
