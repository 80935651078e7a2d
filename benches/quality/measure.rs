//! The figures: how far distributions of the next token lie apart, and what becomes of greedy
//! answers.

use serde::Serialize;
use smolvlm::backend::{Decoder, Halt, Stop};
use smolvlm::largest::Largest;

use crate::Anything;

fn ended(halt: Halt) -> Box<dyn std::error::Error> {
    match halt {
        Halt::Failed(error) => error.into(),
        Halt::Stopped(_) => "stopped, and nobody could stop it".into(),
    }
}

/// Turns logits to their softmax's logarithms.
fn log_softmax(logits: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from((x - largest).exp())).sum();
    let shift = largest + sum.ln() as f32;
    logits.iter_mut().for_each(|x| *x -= shift);
}

/// The id of the largest; of equal ones, the lowest.
fn best(logits: &[f32]) -> u32 {
    let mut largest = Largest::new(1);
    largest.take_in(0, logits);
    largest.found().first().map_or(0, |found| found.1)
}

/// What everything is compared with.
pub struct Reference {
    decoder: Box<dyn Decoder>,
    vocab: usize,
    /// Logarithms of probabilities after each token of a text [tokens, vocab], from token `first` on.
    rows: Vec<f32>,
    first: usize,
    /// Whether tokens come one at a time, as those of its subjects do: in 8 bits, what is rounded
    /// falls to either side with the order of a sum.
    stepped: bool,
    surprise: f64,
    predicted: usize,
}

impl Reference {
    pub fn new(decoder: Box<dyn Decoder>, stepped: bool) -> Self {
        Self { decoder, vocab: 0, rows: Vec::new(), first: 0, stepped, surprise: 0.0, predicted: 0 }
    }

    fn row(&self, token: usize) -> &[f32] {
        &self.rows[(token - self.first) * self.vocab..][..self.vocab]
    }

    fn score(&mut self, ids: &[u32], given: usize) -> Anything<()> {
        let Self { decoder, rows, first, vocab, stepped, .. } = self;
        rows.clear();
        decoder.truncate(0);
        *first = given.saturating_sub(1);
        let take = &mut |logits: &[f32]| {
            *vocab = logits.len();
            rows.extend_from_slice(logits);
        };
        let stop = Stop::default();
        if given > 0 {
            take(decoder.prefill(&ids[..given], &[], &stop).map_err(ended)?);
        }
        let ids = &ids[given..];
        if *stepped {
            for &id in ids {
                take(decoder.step(id, &stop).map_err(ended)?);
            }
        } else {
            decoder.score(ids, take, &stop).map_err(ended)?;
        }
        rows.chunks_exact_mut(*vocab).for_each(log_softmax);
        Ok(())
    }

    /// Reads a text that others are to be compared on, as many tokens of it at once.
    pub fn read(&mut self, window: &[u32], given: usize) -> Anything<()> {
        self.score(window, given)?;
        for (token, &next) in window[1..].iter().enumerate().skip(self.first) {
            self.surprise -= f64::from(self.row(token)[next as usize]);
            self.predicted += 1;
        }
        Ok(())
    }

    /// Of all that was read.
    pub fn perplexity(&self) -> f64 {
        (self.surprise / self.predicted as f64).exp()
    }

    pub fn answer(&mut self, question: &[u32], ends: (usize, &[u32])) -> Anything<Vec<u32>> {
        answer(&mut *self.decoder, question, ends)
    }

    /// Holds an answer against the one that was expected, and each of its tokens against the best
    /// one in its place.
    pub fn judge(&mut self, question: &[u32], given: &[u32], expected: &[u32], answers: &mut Answers) -> Anything<()> {
        answers.all += 1;
        answers.tokens += given.len();
        if given == expected {
            answers.equal += 1;
            answers.own_choice += given.len();
            return Ok(());
        }
        self.score(&[question, &given[..given.len() - 1]].concat(), 0)?;
        for (i, &id) in given.iter().enumerate() {
            let row = self.row(question.len() - 1 + i);
            let best = best(row);
            answers.own_choice += usize::from(best == id);
            answers.regret += f64::from(row[best as usize] - row[id as usize]);
        }
        Ok(())
    }
}

/// Teacher-forced, a token at a time after those that are given at once.
pub fn steps(
    reference: &Reference,
    decoder: &mut dyn Decoder,
    window: &[u32],
    given: usize,
    found: &mut Agreement,
) -> Anything<()> {
    decoder.truncate(0);
    if given > 0 {
        let logits = decoder.prefill(&window[..given], &[], &Stop::default()).map_err(ended)?.to_vec();
        found.take_in(reference.row(given - 1), logits, window.get(given).copied());
    }
    for (token, &id) in window.iter().enumerate().skip(given) {
        let logits = decoder.step(id, &Stop::default()).map_err(ended)?.to_vec();
        found.take_in(reference.row(token), logits, window.get(token + 1).copied());
    }
    Ok(())
}

/// The window's beginnings of these lengths, each given at once.
pub fn prompts(
    reference: &Reference,
    decoder: &mut dyn Decoder,
    window: &[u32],
    lengths: &[usize],
    found: &mut Agreement,
) -> Anything<()> {
    for &length in lengths {
        decoder.truncate(0);
        let logits = decoder.prefill(&window[..length], &[], &Stop::default()).map_err(ended)?.to_vec();
        found.take_in(reference.row(length - 1), logits, window.get(length).copied());
    }
    Ok(())
}

/// A greedy answer with the token that ends it, as a session makes it.
pub fn answer(decoder: &mut dyn Decoder, question: &[u32], (most, ends): (usize, &[u32])) -> Anything<Vec<u32>> {
    decoder.truncate(0);
    let mut given = vec![best(decoder.prefill(question, &[], &Stop::default()).map_err(ended)?)];
    let mut largest = Largest::new(1);
    while given.len() < most && !ends.contains(&given[given.len() - 1]) {
        decoder.step_to(given[given.len() - 1], &mut largest, &Stop::default()).map_err(ended)?;
        given.push(largest.found().first().ok_or("no logit is a number")?.1);
    }
    Ok(given)
}

/// Distributions beside the reference's.
#[derive(Default)]
pub struct Agreement {
    /// Kullback-Leibler divergences of the reference's distributions from these, in nats.
    divergences: Vec<f64>,
    same_best: usize,
    /// Sums of -ln p of the text's own next token, theirs over the reference's.
    surprise: f64,
    predicted: usize,
}

#[derive(Serialize)]
pub struct Figures {
    positions: usize,
    kl_mean: f64,
    /// That 99 of 100 positions stay below.
    kl_p99: f64,
    top1_kept: f64,
    perplexity_times: f64,
}

impl Agreement {
    fn take_in(&mut self, reference: &[f32], mut logits: Vec<f32>, next: Option<u32>) {
        // So a peer says that it cannot be asked for this position (benches/mistral.py).
        if logits.iter().all(|x| x.is_nan()) {
            return;
        }
        self.same_best += usize::from(best(reference) == best(&logits));
        log_softmax(&mut logits);
        // With q - p, whose sum is 0, no term is below 0, and their rounding does not count.
        let terms = reference.iter().zip(&logits).map(|(&log_p, &log_q)| {
            let (p, difference) = (f64::from(log_p.exp()), f64::from(log_q - log_p));
            p * (difference.exp_m1() - difference)
        });
        self.divergences.push(terms.sum());
        if let Some(next) = next {
            self.surprise += f64::from(reference[next as usize] - logits[next as usize]);
            self.predicted += 1;
        }
    }

    pub fn figures(&self) -> Figures {
        let mut divergences = self.divergences.clone();
        divergences.sort_by(f64::total_cmp);
        let positions = divergences.len();
        let of = positions.max(1) as f64;
        Figures {
            positions,
            kl_mean: divergences.iter().sum::<f64>() / of,
            kl_p99: divergences.get(positions * 99 / 100).copied().unwrap_or(0.0),
            top1_kept: self.same_best as f64 / of,
            perplexity_times: (self.surprise / self.predicted.max(1) as f64).exp(),
        }
    }
}

/// Greedy answers beside the reference's.
#[derive(Default)]
pub struct Answers {
    all: usize,
    equal: usize,
    tokens: usize,
    own_choice: usize,
    regret: f64,
}

#[derive(Serialize)]
pub struct AnswerFigures {
    all: usize,
    equal: usize,
    tokens: usize,
    /// Share of the tokens that the reference would have chosen in the same place.
    references_choice: f64,
    /// By how many nats the reference prefers its own choice, mean over the tokens.
    regret: f64,
}

impl Answers {
    pub fn figures(&self) -> AnswerFigures {
        let of = self.tokens.max(1) as f64;
        AnswerFigures {
            all: self.all,
            equal: self.equal,
            tokens: self.tokens,
            references_choice: self.own_choice as f64 / of,
            regret: self.regret / of,
        }
    }
}
