//! Logits to an id: greedy, or drawn by a seeded generator.
//!
//! The order is that of transformers: penalties, temperature, top-k, top-p, min-p.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::{Error, Result};
use crate::largest::Largest;

/// How the next token is chosen. The default is greedy; 0 turns a filter off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0: the likeliest token, always. Else logits are divided by this before the draw.
    pub temperature: f32,
    /// Draws among the `top_k` likeliest.
    pub top_k: usize,
    /// Draws among the likeliest that together reach this probability, 0 to 1.
    pub top_p: f32,
    /// Drops what is less likely than this share of the likeliest, 0 to 1.
    pub min_p: f32,
    /// Over 1 makes tokens that the context holds less likely.
    pub repetition_penalty: f32,
    /// Taken from a token's logit for each time that the answer has it, -2 to 2.
    pub frequency_penalty: f32,
    /// Taken once from the logit of each token that the answer has, -2 to 2.
    pub presence_penalty: f32,
    /// The same seed, request and build give the same answer.
    pub seed: u64,
}

/// A logit divided by less may become infinite.
const MIN_PENALTY: f32 = 0.01;

/// OpenAI's bound of its two penalties.
const MAX_ADDED: f32 = 2.0;

impl Sampling {
    /// Refuses values that mean nothing, by name.
    pub(crate) fn check(&self) -> Result<()> {
        let within = |name: &str, value: f32, max: f32| {
            if (0.0..=max).contains(&value) {
                return Ok(());
            }
            Err(Error::invalid_argument(format!("{name}: {value} given, 0 to {max} accepted")))
        };
        within("temperature", self.temperature, 100.0)?;
        within("top_p", self.top_p, 1.0)?;
        within("min_p", self.min_p, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 100.0)?;
        if self.repetition_penalty > 0.0 && self.repetition_penalty < MIN_PENALTY {
            let message =
                format!("repetition_penalty: {} given, 0 or {MIN_PENALTY} to 100 accepted", self.repetition_penalty);
            return Err(Error::invalid_argument(message));
        }
        for (name, value) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            if !(-MAX_ADDED..=MAX_ADDED).contains(&value) {
                let message = format!("{name}: {value} given, -{MAX_ADDED} to {MAX_ADDED} accepted");
                return Err(Error::invalid_argument(message));
            }
        }
        Ok(())
    }
}

/// A draw among no more than so many has them found beforehand.
const FEW: usize = 256;

/// Draws ids; keeps its buffers from call to call.
pub struct Sampler {
    options: Sampling,
    rng: ChaCha8Rng,
    logits: Vec<f32>,
    seen: Vec<bool>,
    /// How often each id was chosen; kept where a penalty asks for it.
    chosen: BTreeMap<u32, u32>,
    /// (logit, later probability, and id), likeliest first in the end.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    pub fn new(options: Sampling) -> Result<Self> {
        options.check()?;
        let rng = ChaCha8Rng::seed_from_u64(options.seed);
        Ok(Self { options, rng, logits: Vec::new(), seen: Vec::new(), chosen: BTreeMap::new(), candidates: Vec::new() })
    }

    /// As many of the largest logits as it needs, where it needs no others.
    pub fn needs(&self) -> Option<Largest> {
        self.few().filter(|_| !self.repetition_counts() && !self.answer_counts())
    }

    /// Among how many of the largest logits it chooses, if these are few.
    fn few(&self) -> Option<Largest> {
        let Sampling { temperature, top_k, .. } = self.options;
        let count = if temperature == 0.0 { 1 } else { top_k };
        (1..=FEW).contains(&count).then(|| Largest::new(count))
    }

    /// The next id, out of the largest logits that it needs.
    pub fn pick(&mut self, largest: &Largest) -> Result<u32> {
        if self.options.temperature == 0.0 {
            return largest.found().first().map(|found| found.1).ok_or_else(no_number);
        }
        self.candidates.clear();
        self.candidates.extend_from_slice(largest.found());
        self.draw()
    }

    /// The next id after `context`, whose ids a repetition penalty looks at. The other penalties look at what was sampled
    /// here before.
    pub fn sample(&mut self, logits: &[f32], context: &[u32]) -> Result<u32> {
        let id = self.choose(logits, context)?;
        if self.answer_counts() {
            *self.chosen.entry(id).or_default() += 1;
        }
        Ok(id)
    }

    fn choose(&mut self, logits: &[f32], context: &[u32]) -> Result<u32> {
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.penalise(context);
        if let Some(mut largest) = self.few() {
            largest.take_in(0, &self.logits);
            return self.pick(&largest);
        }
        self.candidates.clear();
        self.candidates.extend(self.logits.iter().copied().zip(0..).filter(|(logit, _)| !logit.is_nan()));
        self.draw()
    }

    fn repetition_counts(&self) -> bool {
        ![0.0, 1.0].contains(&self.options.repetition_penalty)
    }

    /// Whether it matters what the answer has already.
    fn answer_counts(&self) -> bool {
        self.options.frequency_penalty != 0.0 || self.options.presence_penalty != 0.0
    }

    fn penalise(&mut self, context: &[u32]) {
        self.penalise_repetition(context);
        let Sampling { frequency_penalty, presence_penalty, .. } = self.options;
        for (&id, &count) in &self.chosen {
            if let Some(logit) = self.logits.get_mut(id as usize) {
                *logit -= count as f32 * frequency_penalty + presence_penalty;
            }
        }
    }

    fn penalise_repetition(&mut self, context: &[u32]) {
        let penalty = self.options.repetition_penalty;
        if !self.repetition_counts() {
            return;
        }
        self.seen.clear();
        self.seen.resize(self.logits.len(), false);
        for &id in context {
            let Some(seen) = self.seen.get_mut(id as usize) else { continue };
            if !std::mem::replace(seen, true) {
                let logit = &mut self.logits[id as usize];
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    /// One of the candidates, whose logits become probabilities.
    fn draw(&mut self) -> Result<u32> {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.options;
        let candidates = &mut self.candidates;
        let max = candidates.iter().fold(f32::NEG_INFINITY, |max, candidate| max.max(candidate.0));
        if !max.is_finite() {
            return Err(no_number());
        }
        let likelier =
            |a: &(f32, u32), b: &(f32, u32)| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1));
        if (1..candidates.len()).contains(&top_k) {
            candidates.select_nth_unstable_by(top_k - 1, likelier);
            candidates.truncate(top_k);
        }
        candidates.sort_unstable_by(likelier);
        // Unnormalised: the likeliest has 1.
        candidates.iter_mut().for_each(|(x, _)| *x = ((*x - max) / temperature).exp());
        if top_p > 0.0 && top_p < 1.0 {
            let target = top_p * candidates.iter().map(|c| c.0).sum::<f32>();
            let mut reached = 0.0;
            let keep = candidates.iter().position(|c| {
                reached += c.0;
                reached >= target
            });
            candidates.truncate(keep.map_or(candidates.len(), |i| i + 1));
        }
        if min_p > 0.0 {
            let keep = candidates.partition_point(|c| c.0 >= min_p);
            candidates.truncate(keep.max(1));
        }

        // 24 random bits make a uniform f32 in [0, 1).
        let uniform = (self.rng.next_u32() >> 8) as f32 / (1 << 24) as f32;
        let mut left = uniform * candidates.iter().map(|c| c.0).sum::<f32>();
        for &(weight, id) in candidates.iter() {
            left -= weight;
            if left < 0.0 {
                return Ok(id);
            }
        }
        candidates.last().map(|c| c.1).ok_or_else(no_number)
    }
}

fn no_number() -> Error {
    Error::new(crate::error::ErrorKind::Backend, "logits: no finite number among them (damaged weights?)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(options: Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(options).unwrap();
        let mut counts = vec![0; logits.len()];
        (0..draws).for_each(|_| counts[sampler.sample(logits, &[]).unwrap() as usize] += 1);
        counts
    }

    /// Probabilities 0.5, 0.25, 0.125, 0.125.
    fn halves() -> [f32; 4] {
        [8.0f32.ln(), 4.0f32.ln(), 2.0f32.ln(), 2.0f32.ln()]
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_never_nan() {
        let mut greedy = Sampler::new(Sampling::default()).unwrap();
        assert_eq!(greedy.sample(&[1.0, 3.0, 3.0, f32::NAN], &[]).unwrap(), 1);
        assert!(greedy.sample(&[f32::NAN], &[]).is_err());
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let options = Sampling { temperature: 1.0, seed: 7, ..Default::default() };
        let counted = counts(options, &halves(), 80_000);
        for (count, expected) in counted.iter().zip([40_000.0f64, 20_000.0, 10_000.0, 10_000.0]) {
            assert!((*count as f64 - expected).abs() < 5.0 * expected.sqrt(), "{counted:?}");
        }
        assert_eq!(counted, counts(options, &halves(), 80_000));
        assert_ne!(counted, counts(Sampling { seed: 8, ..options }, &halves(), 80_000));
    }

    #[test]
    fn filters_keep_exactly_what_they_say() {
        let base = Sampling { temperature: 1.0, ..Default::default() };
        let kept = |o| counts(o, &halves(), 2000).iter().map(|&c| c > 0).collect::<Vec<_>>();
        assert_eq!(kept(Sampling { top_k: 2, ..base }), [true, true, false, false]);
        assert_eq!(kept(Sampling { top_p: 0.7, ..base }), [true, true, false, false]);
        assert_eq!(kept(Sampling { top_p: 0.5, ..base }), [true, false, false, false]);
        assert_eq!(kept(Sampling { min_p: 0.4, ..base }), [true, true, false, false]);
        assert_eq!(kept(Sampling { min_p: 1.0, ..base }), [true, false, false, false]);
        assert_eq!(kept(base), [true; 4]);
    }

    #[test]
    fn the_largest_logits_are_enough_where_it_says_so() {
        let logits: Vec<f32> = (0..500u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 / 400.0).collect();
        for (temperature, top_k, count) in
            [(0.0, 0, Some(1)), (0.0, 5, Some(1)), (0.7, 5, Some(5)), (0.7, 0, None), (0.7, 300, None)]
        {
            let options = Sampling { temperature, top_k, top_p: 0.9, seed: 3, ..Default::default() };
            let mut sampler = Sampler::new(options).unwrap();
            assert_eq!(sampler.needs().map(|largest| largest.count()), count);
            let Some(mut largest) = sampler.needs() else { continue };
            largest.take_in(0, &logits);
            let mut other = Sampler::new(options).unwrap();
            let largest_logit = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let first_of_the_largest = logits.iter().position(|&logit| logit == largest_logit).unwrap() as u32;
            for _ in 0..50 {
                // Of all.
                other.candidates = logits.iter().copied().zip(0..).collect();
                let drawn = if temperature == 0.0 { first_of_the_largest } else { other.draw().unwrap() };
                assert_eq!(sampler.pick(&largest).unwrap(), drawn);
            }
        }
        let penalty = Sampling { repetition_penalty: 1.5, ..Default::default() };
        assert!(Sampler::new(penalty).unwrap().needs().is_none());
    }

    #[test]
    fn a_penalty_counts_each_id_once_and_works_on_negative_logits() {
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..Default::default() }).unwrap();
        assert_eq!(sampler.sample(&[3.0, 2.0], &[0, 0]).unwrap(), 1);
        assert_eq!(sampler.sample(&[3.0, 1.0], &[0, 0]).unwrap(), 0, "3 / 2 is still more than 1");
        assert_eq!(sampler.sample(&[-1.0, -1.5], &[0, 99]).unwrap(), 1);
    }

    #[test]
    fn the_answer_s_penalties_count_what_was_chosen_and_not_the_prompt() {
        let answer = |options: Sampling, logits: &[f32], len: usize| -> Vec<u32> {
            let mut sampler = Sampler::new(options).unwrap();
            assert!(sampler.needs().is_none(), "the largest logits may be others");
            // The prompt is full of id 0.
            (0..len).map(|_| sampler.sample(logits, &[0, 0, 0, 0]).unwrap()).collect()
        };
        let frequency = Sampling { frequency_penalty: 0.5, ..Default::default() };
        // 3, 2.5, 2.0 (behind 2.2), 2.0, ...
        assert_eq!(answer(frequency, &[3.0, 2.2, 0.0], 5), [0, 0, 1, 0, 1]);
        let presence = Sampling { presence_penalty: 1.0, ..Default::default() };
        assert_eq!(answer(presence, &[3.0, 2.2, 0.0], 5), [0, 1, 0, 0, 0]);
        let both = Sampling { frequency_penalty: 0.5, presence_penalty: 0.5, ..Default::default() };
        assert_eq!(answer(both, &[3.0, 2.2, 1.3], 4), [0, 1, 0, 0]);
        // Below zero, what was said is said again.
        let again = Sampling { presence_penalty: -2.0, temperature: 1.0, top_k: 1, ..Default::default() };
        assert_eq!(answer(again, &[3.0, 2.9], 3), [0, 0, 0]);
        for value in [2.1, -2.1, f32::NAN] {
            let error = Sampler::new(Sampling { frequency_penalty: value, ..Default::default() }).err().unwrap();
            assert_eq!(error.message(), format!("frequency_penalty: {value} given, -2 to 2 accepted"));
            assert!(Sampler::new(Sampling { presence_penalty: value, ..Default::default() }).is_err());
        }
    }

    #[test]
    fn senseless_values_are_named() {
        let e = Sampler::new(Sampling { top_p: 1.5, ..Default::default() }).err().unwrap();
        assert_eq!(e.message(), "top_p: 1.5 given, 0 to 1 accepted");
        assert!(Sampler::new(Sampling { repetition_penalty: 1e-39, ..Default::default() }).is_err());
        assert!(Sampler::new(Sampling { temperature: f32::NAN, ..Default::default() }).is_err());
    }
}
