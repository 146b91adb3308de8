// The exchange between the two networks of a bilevel step, on the device, so that the step does not wait for
// the host.
//
//     seeds         s = factors[0] w
//     backward      d_w = factors[1] c + factors[2] e'(w) / B
//                   e(w) = 0.01 (w ln(w + f) + (1 - w) ln(1 - w + f)), f = 1e-8
//     standardized  (c - mean(c)) / deviation(c), or without the division
//     regression    d_logit = 2 factor (logit - t),    t = (kept - rate c - mean) / deviation
//
// w are the rater's weights, s the seeds of the proxy's backward, c the signal of each sample, e the entropy
// term, and t the running average of -c, standardized over the corpus.
//
// Shapes: w, c, s, d_w [B] in float; averages [B, 2]: kept and rate of each sample; corpus: mean, 1 /
// deviation and the factor. `factors` and `corpus` are device memory, so that a recorded CUDA graph reads
// those of its step. A signal that is not finite is replaced by the weighted mean of the others, which has no
// gradient through the softmax.
// Threads: 256 per block, one sample per thread; one block where a sum over the batch is needed. A few
// hundred bytes.
// Precision: f32, sums in a fixed order.
// Reference: src/engine/ops/rater_loss/cpu.rs. Source: docs/method.md, "The rules"; the entropy term:
// docs/upstream.md, A11.
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr float ENTROPY_WEIGHT = 0.01f;
constexpr float LOG_EPSILON = 1e-8f;

KERNEL(
    rater_loss_seeds, THREADS, float *seeds, const float *weights, const float *factors, uint32_t samples) {
    unsigned at = blockIdx.x * THREADS + threadIdx.x;
    if (at < samples) seeds[at] = factors[0] * weights[at];
}

KERNEL(
    rater_loss_backward, THREADS, float *d_weights, const float *signals, const float *weights,
    const float *factors, uint32_t samples) {
    SHARED_ARRAY(float, scratch, [THREADS / WARP]);
    float total = 0.0f, sum = 0.0f;
    for (unsigned at = threadIdx.x; at < samples; at += THREADS) {
        if (isfinite(signals[at])) total += weights[at], sum += weights[at] * signals[at];
    }
    total = block_reduce<THREADS>(total, scratch);
    sum = block_reduce<THREADS>(sum, scratch);
    float weighted_mean = total > 0.0f ? sum / total : 0.0f, entropy = factors[2];
    for (unsigned at = threadIdx.x; at < samples; at += THREADS) {
        float d = factors[1] * (isfinite(signals[at]) ? signals[at] : weighted_mean);
        if (entropy != 0.0f) {
            float w = weights[at], yes = w + LOG_EPSILON, no = 1.0f - w + LOG_EPSILON;
            float slope = logf(yes) + w / yes - logf(no) - (1.0f - w) / no;
            d += entropy * (ENTROPY_WEIGHT / float(samples)) * slope;
        }
        d_weights[at] = d;
    }
}

KERNEL(
    rater_loss_standardize, THREADS, float *to, const float *signals, uint32_t samples, uint32_t deviation) {
    SHARED_ARRAY(float, scratch, [THREADS / WARP]);
    float count = 0.0f, sum = 0.0f, squares = 0.0f;
    for (unsigned at = threadIdx.x; at < samples; at += THREADS) {
        if (isfinite(signals[at])) count += 1.0f, sum += signals[at];
    }
    count = fmaxf(block_reduce<THREADS>(count, scratch), 1.0f);
    float mean = block_reduce<THREADS>(sum, scratch) / count;
    for (unsigned at = threadIdx.x; at < samples; at += THREADS) {
        float difference = signals[at] - mean;
        if (isfinite(signals[at])) squares += difference * difference;
    }
    float standard_deviation = sqrtf(block_reduce<THREADS>(squares, scratch) / count);
    float factor = deviation == 0 ? 1.0f : standard_deviation > 0.0f ? 1.0f / standard_deviation : 0.0f;
    for (unsigned at = threadIdx.x; at < samples; at += THREADS) {
        to[at] = isfinite(signals[at]) ? (signals[at] - mean) * factor : signals[at];
    }
}

KERNEL(
    rater_loss_regression, THREADS, float *d_logits, float *targets, const float *logits,
    const float *signals, const float *averages, const float *corpus, uint32_t samples) {
    unsigned at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= samples) return;
    float signal = signals[at];
    bool is_valid = isfinite(signal);
    float target = (averages[2 * at] - averages[2 * at + 1] * signal - corpus[0]) * corpus[1];
    targets[at] = is_valid ? target : nanf("");
    d_logits[at] = is_valid ? 2.0f * corpus[2] * (logits[at] - target) : 0.0f;
}
