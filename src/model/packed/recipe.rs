//! Which of the decoder's matrices are kept in how many bits.

use crate::kernels::{Mix, Precision};

/// The layers' matrices; see [`Recipe::of_layer`].
pub(super) struct Recipe {
    pub(super) qkv: Mix,
    pub(super) o: Precision,
    pub(super) gate_up: Precision,
    pub(super) down: Precision,
}

impl Recipe {
    pub(super) fn of_layer(precision: Precision, (layer, layers): (usize, usize), values_from: usize) -> Self {
        if precision != Precision::Int4 {
            return Self { qkv: precision.into(), o: precision, gate_up: precision, down: precision };
        }
        let e = env();
        let more = (layer + 1) * e[5] / layers != layer * e[5] / layers;
        let up = |b: usize| bits(b + usize::from(more));
        Self {
            qkv: Mix { first: bits(e[0]), count: values_from, rest: bits(e[1]) },
            o: bits(e[2]),
            gate_up: up(e[3]),
            down: bits(e[4]),
        }
    }

    pub(super) fn of_head(precision: Precision) -> Precision {
        if precision == Precision::Int4 {
            if env()[6] == 8 { Precision::Int8 } else { bits(env()[6]) }
        } else {
            precision
        }
    }
}

fn bits(bits: usize) -> Precision {
    match bits {
        4 => Precision::Int4,
        5 => Precision::Int5,
        _ => Precision::Int6,
    }
}

fn env() -> Vec<usize> {
    std::env::var("X_R").unwrap_or("4,6,4,4,5,13,6".into()).split(',').map(|x| x.parse().unwrap()).collect()
}
