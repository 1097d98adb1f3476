//! Whether two things that were measured in turn, in several rounds, differ. Pure.
//!
//! Other load on a machine affects both measurements of a round alike, so the ratio within a round is a better measure than the ratio of
//! the two medians. The ratios of all rounds are tested with the signed-rank test of Wilcoxon (Individual comparisons by ranking methods,
//! Biometrics Bulletin 1, 1945, pages 80 to 83), with its exact distribution. It assumes nothing about the shape of the spread, which on a
//! shared machine is not a normal one.

/// If chance alone makes such ratios with a smaller probability than this one, there is a difference. Several figures are compared in one
/// run: with the usual 0.05, about two of five runs of ten figures would find a difference where there is none. Eight rounds have a smaller
/// probability than this one only if all of them point the same way.
pub const SIGNIFICANCE: f64 = 0.01;

/// The middle and the ends of several values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub least: f64,
    /// The middle value, or the mean of the two in the middle.
    pub median: f64,
    pub most: f64,
}

impl Spread {
    /// The spread of the values that are finite. None if there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (lower, upper) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
        Some(Self {
            least: *sorted.first()?,
            median: f64::midpoint(*sorted.get(lower)?, *sorted.get(upper)?),
            most: *sorted.last()?,
        })
    }

    /// The median, and the ends in brackets. `digits` formats a value.
    #[must_use]
    pub fn shown(&self, digits: impl Fn(f64) -> String) -> String {
        let [least, median, most] = [self.least, self.median, self.most].map(digits);
        format!("{median} [{least}..{most}]")
    }
}

/// The result of the rounds for two things.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// The rounds in which both were measured.
    pub rounds: usize,
    pub before: Spread,
    pub now: Spread,
    /// The second divided by the first, within each round.
    pub ratio: Spread,
    /// How probable ratios are that lie at least as far on one side of 1, if there is no difference.
    pub probability: f64,
}

impl Comparison {
    /// Compares the measurements of rounds, each with the value before and the value now. Rounds in which one of them is not a positive
    /// number are left out. None if all are.
    #[must_use]
    pub fn of(rounds: &[(f64, f64)]) -> Option<Self> {
        let is_measured = |value: f64| value.is_finite() && value > 0.0;
        let rounds: Vec<(f64, f64)> = rounds
            .iter()
            .copied()
            .filter(|(before, now)| is_measured(*before) && is_measured(*now))
            .collect();
        // Half as much and twice as much are equally far from no difference.
        let logarithms: Vec<f64> = rounds.iter().map(|(b, n)| (n / b).ln()).collect();
        Some(Self {
            rounds: rounds.len(),
            before: Spread::of(rounds.iter().map(|round| round.0))?,
            now: Spread::of(rounds.iter().map(|round| round.1))?,
            ratio: Spread::of(rounds.iter().map(|(b, n)| n / b))?,
            probability: signed_rank(&logarithms),
        })
    }

    /// Whether the difference is larger than what the spread of the rounds explains.
    #[must_use]
    pub fn is_difference(&self) -> bool {
        self.probability < SIGNIFICANCE
    }
}

/// The two-sided probability, if the median is zero, of differences that lie at least as far on one side of zero. Differences of zero
/// are left out, and equal ones share the mean of their ranks.
#[must_use]
pub fn signed_rank(differences: &[f64]) -> f64 {
    let nonzero = differences.iter().copied();
    let mut sorted: Vec<f64> = nonzero.filter(|d| d.is_finite() && *d != 0.0).collect();
    sorted.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let ranks = doubled_ranks(&sorted);
    let total: usize = ranks.iter().sum();
    let positive = sorted.iter().zip(&ranks).filter(|(d, _)| **d > 0.0);
    let positive: usize = positive.map(|(_, rank)| rank).sum();
    let extreme = positive.min(total - positive);
    let probabilities = sums(&ranks, total);
    let tail: f64 = probabilities.iter().take(extreme + 1).sum();
    (2.0 * tail).min(1.0)
}

/// Twice the rank of each of the values, which are sorted by their size. A mean of ranks may end with one half, so twice of it is whole.
fn doubled_ranks(sorted: &[f64]) -> Vec<usize> {
    let mut ranks = Vec::with_capacity(sorted.len());
    for equal in sorted.chunk_by(|a, b| a.abs() == b.abs()) {
        let first = ranks.len() + 1;
        let last = ranks.len() + equal.len();
        ranks.extend(std::iter::repeat_n(first + last, equal.len()));
    }
    ranks
}

/// For each sum, the probability that those `ranks` that get a positive sign have it, if both signs are equally likely.
fn sums(ranks: &[usize], total: usize) -> Vec<f64> {
    let mut probabilities = vec![0.0; total + 1];
    if let Some(none) = probabilities.first_mut() {
        *none = 1.0;
    }
    for rank in ranks {
        let before = probabilities.clone();
        for (sum, probability) in probabilities.iter_mut().enumerate() {
            let with = sum.checked_sub(*rank).and_then(|sum| before.get(sum));
            *probability = f64::midpoint(*probability, with.copied().unwrap_or(0.0));
        }
    }
    probabilities
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether two probabilities are the same but for rounding.
    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn a_spread_has_the_middle_and_the_ends_of_what_was_measured() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        let of = |least, median, most| {
            Some(Spread {
                least,
                median,
                most,
            })
        };
        assert_eq!(spread(&[3.0, 1.0, 2.0]), of(1.0, 2.0, 3.0));
        assert_eq!(spread(&[4.0, f64::NAN, 1.0, 2.0, 3.0]), of(1.0, 2.5, 4.0));
        assert_eq!(spread(&[5.0]), of(5.0, 5.0, 5.0));
        assert_eq!(spread(&[f64::NAN]), None);
        let shown = spread(&[3.0, 1.0, 2.0]).map(|spread| spread.shown(|v| format!("{v:.1}")));
        assert_eq!(shown.as_deref(), Some("2.0 [1.0..3.0]"));
    }

    #[test]
    fn the_probabilities_are_those_of_the_published_tables() {
        // The critical values for two sides in Wilcoxon's table: n = 6 and a sum of 0 at 0.03125, n = 8 and a sum of 3 at 0.0390625.
        let six = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert!(close(signed_rank(&six), 2.0 / 64.0));
        let eight = [1.0, 2.0, -3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        assert!(close(signed_rank(&eight), 10.0 / 256.0));
        // Both signs count alike.
        let turned: Vec<f64> = eight.iter().map(|d| -d).collect();
        assert!(close(signed_rank(&turned), signed_rank(&eight)));
    }

    #[test]
    fn equal_differences_share_their_ranks_and_zeros_are_left_out() {
        // The ranks are 1.5, 1.5 and 3. Three of the eight choices of signs make a sum of at most 1.5: none, and either 1.5.
        let probability = signed_rank(&[1.0, -1.0, 2.0, 0.0]);
        assert!(close(probability, 2.0 * 3.0 / 8.0), "{probability}");
        assert!(close(signed_rank(&[0.0, 0.0]), 1.0));
        assert!(close(signed_rank(&[]), 1.0));
    }

    #[test]
    fn eight_rounds_that_agree_show_a_difference_and_seven_of_eight_may_not() {
        let faster: Vec<(f64, f64)> = (0..8).map(|n| (3.0, 3.1 + f64::from(n) / 100.0)).collect();
        let compared = Comparison::of(&faster).expect("rounds");
        assert!(compared.is_difference(), "{compared:?}");
        let mut mixed = faster;
        mixed.push((3.0, 2.0));
        mixed.remove(0);
        let compared = Comparison::of(&mixed).expect("rounds");
        assert!(!compared.is_difference(), "{compared:?}");
    }

    #[test]
    fn a_drift_of_the_machine_hides_no_difference_within_rounds() {
        // The machine becomes three times slower; each round the second is 4 % faster.
        let rounds: Vec<(f64, f64)> = (0..8)
            .map(|n| 3.0 / (1.0 + f64::from(n) / 4.0))
            .enumerate()
            .map(|(n, rate)| (rate, rate * (1.04 + n as f64 / 1000.0)))
            .collect();
        let compared = Comparison::of(&rounds).expect("rounds");
        assert!(compared.is_difference());
        assert!(compared.ratio.least > 1.03 && compared.ratio.most < 1.06);
        assert!(compared.before.most / compared.before.least > 2.0);
    }

    #[test]
    fn rounds_in_which_one_was_not_measured_are_left_out() {
        let rounds = [(1.0, 2.0), (f64::NAN, 2.0), (2.0, 0.0), (1.0, 4.0)];
        let compared = Comparison::of(&rounds).expect("two rounds");
        assert_eq!(compared.rounds, 2);
        assert!(close(compared.ratio.median, 3.0));
        assert_eq!(Comparison::of(&[(f64::NAN, 1.0)]), None);
    }
}
