//! In how many bits the decoder's matrices are kept.

use crate::kernels::Precision;

/// Those of a layer.
#[derive(Clone, Copy)]
pub(super) struct Recipe {
    pub(super) queries_keys: Precision,
    pub(super) values: Precision,
    pub(super) o: Precision,
    pub(super) gate_up: Precision,
    pub(super) down: Precision,
}

impl Recipe {
    /// In int4 it is 5 bits, and 6 for values, which are few and whose errors are the worst. With
    /// 5 bits in the head, where llama.cpp's Q4_0 has 8, a step of the smallest model reads 4 % more
    /// than its, and real weights keep a distribution 7 times as near to f32's. With 4 bits for
    /// queries, keys and what comes out of attention it would be 0.6 as near, for 3 % of the bytes;
    /// for gate and up 0.45, for 7 %.
    pub(super) fn of_layer(precision: Precision) -> Self {
        let (most, values) = match precision {
            Precision::Int4 => (Precision::Int5, Precision::Int6),
            other => (other, other),
        };
        Self { queries_keys: most, values, o: most, gate_up: most, down: most }
    }

    pub(super) fn of_head(precision: Precision) -> Precision {
        if precision == Precision::Int4 { Precision::Int5 } else { precision }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of so many weights, their scales among them.
    fn bytes(weights: usize, precision: Precision) -> usize {
        let half_bits = match precision {
            Precision::Int4 => 9,
            Precision::Int5 => 11,
            Precision::Int6 => 13,
            Precision::Int8 => 16,
            Precision::Bf16 => 32,
        };
        weights * half_bits / 16
    }

    #[test]
    fn a_step_in_int4_reads_little_more_than_q4_0_s() {
        // Of SmolVLM-256M's decoder, 500M's and 2.2B's.
        for (hidden, inner, layers, keys, most) in
            [(576, 1536, 30, 192, 1.05), (960, 2560, 32, 320, 1.14), (2048, 8192, 24, 2048, 1.21)]
        {
            let head = 49_280 * hidden;
            let recipe = Recipe::of_layer(Precision::Int4);
            let of_layer = bytes(hidden * (hidden + keys), recipe.queries_keys)
                + bytes(hidden * keys, recipe.values)
                + bytes(hidden * hidden, recipe.o)
                + bytes(2 * hidden * inner, recipe.gate_up)
                + bytes(hidden * inner, recipe.down);
            let ours = layers * of_layer + bytes(head, Recipe::of_head(Precision::Int4));
            let weights = layers * hidden * (2 * hidden + 2 * keys + 3 * inner);
            // 32 weights of Q8_0, which the head is in, and their scale.
            let q4_0 = bytes(weights, Precision::Int4) + head / 32 * 34;
            let ratio = ours as f64 / q4_0 as f64;
            assert!(ratio <= most, "{hidden}: {ours} bytes, {ratio} of q4_0's");
            assert!(ours < weights + head, "int8 reads less");
        }
    }
}
