//! The largest of a vocabulary's logits, found in parts of it: all that is needed to choose the
//! likeliest token, or to draw from a few.

use std::cmp::Ordering;

/// Logits that are looked at together.
const AT_ONCE: usize = 32;

/// The `count` largest logits of those taken in, and their ids; NaN is none of them.
#[derive(Clone, Debug)]
pub struct Largest {
    count: usize,
    /// The largest first; of equal ones, the lower id, as in torch's `argmax` on the CPU.
    found: Vec<(f32, u32)>,
}

impl Largest {
    /// None yet; `count` is at least 1.
    pub fn new(count: usize) -> Self {
        assert!(count > 0);
        Self { count, found: Vec::new() }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// The largest logit first, with its id.
    pub fn found(&self) -> &[(f32, u32)] {
        &self.found
    }

    pub fn clear(&mut self) {
        self.found.clear();
    }

    /// Takes in the logits of all ids from `first` on.
    pub fn take_in(&mut self, first: u32, logits: &[f32]) {
        for (part, logits) in logits.chunks(AT_ONCE).enumerate() {
            if let Some(least) = self.least()
                && !logits.iter().fold(false, |any, &logit| any | (logit >= least))
            {
                continue;
            }
            for (i, &logit) in logits.iter().enumerate() {
                self.insert(logit, first + (part * AT_ONCE + i) as u32);
            }
        }
    }

    /// Takes in what another one has found.
    pub fn join(&mut self, other: &Self) {
        other.found.iter().for_each(|&(logit, id)| self.insert(logit, id));
    }

    /// The smallest that has been found, where others have to be larger.
    fn least(&self) -> Option<f32> {
        self.found.get(self.count - 1).map(|found| found.0)
    }

    fn insert(&mut self, logit: f32, id: u32) {
        if logit.is_nan() || self.least().is_some_and(|least| logit < least) {
            return;
        }
        let before = |other: &(f32, u32)| match other.0.partial_cmp(&logit) {
            Some(Ordering::Equal) => other.1 < id,
            order => order == Some(Ordering::Greater),
        };
        let at = self.found.partition_point(before);
        if at < self.count {
            self.found.truncate(self.count - 1);
            self.found.insert(at, (logit, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_sorting_all_however_they_come() {
        let number = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) % 97;
        let mut logits: Vec<f32> = (0..1000).map(|i| number(i) as f32 - 48.0).collect();
        (logits[3], logits[400], logits[999]) = (f32::NAN, f32::NEG_INFINITY, f32::INFINITY);
        let mut sorted: Vec<(f32, u32)> =
            logits.iter().copied().zip(0..).filter(|(logit, _)| !logit.is_nan()).collect();
        sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for count in [1, 2, 31, 998, 999, 2000] {
            let mut whole = Largest::new(count);
            whole.take_in(0, &logits);
            assert_eq!(whole.found(), &sorted[..count.min(999)]);
            // Parts, the last one first.
            let mut joined = Largest::new(count);
            for first in (0..1000).step_by(77).rev() {
                let mut part = Largest::new(count);
                part.take_in(first as u32, &logits[first..1000.min(first + 77)]);
                joined.join(&part);
            }
            assert_eq!(joined.found(), whole.found());
        }
        let mut none = Largest::new(3);
        none.take_in(0, &[f32::NAN; 40]);
        assert!(none.found().is_empty());
    }
}
