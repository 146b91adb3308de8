//! Statistics of how well a rating separates groups. Ties are averaged, and the order of the input does not matter.

/// The ranks of `values` in ascending order, from 1; ties share their mean rank. `None` if a value is NaN.
#[expect(clippy::cast_precision_loss, reason = "ranks fit 53 bits")]
fn mean_ranks(values: &[f64]) -> Option<Vec<f64>> {
    if values.iter().any(|value| value.is_nan()) {
        return None;
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    // Zeros of both signs are equal to `==` below and must be adjacent.
    order.sort_unstable_by(|&left, &right| (values[left] + 0.0).total_cmp(&(values[right] + 0.0)));
    let mut ranks = vec![0.0; values.len()];
    let mut begin = 0;
    while begin < order.len() {
        let ties = order[begin..].iter().take_while(|&&row| values[row] == values[order[begin]]).count();
        let rank = begin as f64 + (ties as f64 + 1.0) / 2.0;
        order[begin..begin + ties].iter().for_each(|&row| ranks[row] = rank);
        begin += ties;
    }
    Some(ranks)
}

/// Area under the ROC curve: the probability that a positive has a higher score than a negative, ties counting half
/// (the Mann-Whitney statistic). `None` when either class is empty, the lengths differ, or a score is NaN.
#[expect(clippy::cast_precision_loss, reason = "counts fit 53 bits")]
pub fn auroc(scores: &[f64], positives: &[bool]) -> Option<f64> {
    let positive = positives.iter().filter(|&&positive| positive).count();
    let negative = positives.len() - positive;
    if scores.len() != positives.len() || positive == 0 || negative == 0 {
        return None;
    }
    let ranks = mean_ranks(scores)?;
    let sum: f64 = ranks.iter().zip(positives).filter(|&(_, &positive)| positive).map(|(rank, _)| rank).sum();
    let positive = positive as f64;
    Some((sum - positive * (positive + 1.0) / 2.0) / (positive * negative as f64))
}

/// Mean percentile of the members of a group in the ranking of `ratings` from high to low: 0 is the best rated, as in
/// [`crate::select`], but ties share the mean of their percentiles. `None` when the group is empty, the lengths
/// differ, or a rating is NaN.
#[expect(clippy::cast_precision_loss, reason = "counts fit 53 bits")]
pub fn mean_percentile(ratings: &[f64], members: &[bool]) -> Option<f64> {
    let count = members.iter().filter(|&&member| member).count();
    if ratings.len() != members.len() || count == 0 {
        return None;
    }
    let ranks = mean_ranks(ratings)?;
    let rows = ratings.len() as f64;
    let sum: f64 =
        ranks.iter().zip(members).filter(|&(_, &member)| member).map(|(rank, _)| (rows - rank) / rows).sum();
    Some(sum / count as f64)
}

/// Spearman's rank correlation: Pearson's correlation of the ranks; ties share their mean rank. `None` when the lengths
/// differ, a value is NaN, or one side is constant (or has fewer than two values).
#[expect(clippy::cast_precision_loss, reason = "counts fit 53 bits")]
pub fn spearman(left: &[f64], right: &[f64]) -> Option<f64> {
    if left.len() != right.len() {
        return None;
    }
    let (left, right) = (mean_ranks(left)?, mean_ranks(right)?);
    let mean = (left.len() as f64 + 1.0) / 2.0;
    let (mut product, mut left_square, mut right_square) = (0.0, 0.0, 0.0);
    for (left, right) in left.iter().zip(&right) {
        product += (left - mean) * (right - mean);
        left_square += (left - mean) * (left - mean);
        right_square += (right - mean) * (right - mean);
    }
    (left_square > 0.0 && right_square > 0.0).then(|| product / (left_square * right_square).sqrt())
}

/// Two-sided 95% points of Student's t by degrees of freedom, from 1.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// The mean and half its 95% interval by Student's t; no interval for a single value. `None` if `values` is empty.
#[expect(clippy::cast_precision_loss, reason = "counts fit 53 bits")]
pub(crate) fn mean_interval(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    match values.len() {
        0 => None,
        1 => Some((mean, None)),
        many => {
            let spread = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
            // Beyond the table, the normal quantile is accurate to half a percent.
            let point = STUDENT.get(many - 2).copied().unwrap_or(1.96 + 2.5 / count);
            Some((mean, Some(point * (spread / count).sqrt())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_that_of_the_t_distribution() {
        assert_eq!(mean_interval(&[]), None);
        assert_eq!(mean_interval(&[3.0]), Some((3.0, None)));
        let (mean, half) = mean_interval(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!(mean, 3.0);
        // The standard deviation is √2.5, and t at 4 degrees of freedom is 2.776.
        approx::assert_relative_eq!(half.unwrap(), 2.776 * (2.5f64 / 5.0).sqrt(), max_relative = 1e-12);
    }
}
