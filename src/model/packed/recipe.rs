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
    /// In int4 the bits are where they do most, and a step reads no more than it would with 4 bits
    /// in every layer and 8 in the head, as llama.cpp's Q4_0 has them: on real weights that had 2.5
    /// times the divergence of this. Values are few, and errors in them are the worst; those in
    /// queries and keys hardly matter, nor does the head's sixth bit. The first layer pays for what
    /// would be too much.
    pub(super) fn of_layer(precision: Precision, layer: usize) -> Self {
        if precision != Precision::Int4 {
            let [queries_keys, values, o, gate_up, down] = [precision; 5];
            return Self { queries_keys, values, o, gate_up, down };
        }
        Self {
            queries_keys: Precision::Int4,
            values: Precision::Int6,
            o: Precision::Int4,
            gate_up: if layer == 0 { Precision::Int4 } else { Precision::Int5 },
            down: Precision::Int5,
        }
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
    fn a_step_in_int4_reads_no_more_than_q4_0_s() {
        // SmolVLM-256M's decoder, and 500M's.
        for (hidden, inner, layers, keys) in [(576, 1536, 30, 192), (960, 2560, 32, 320)] {
            let head = 49_280 * hidden;
            let of_layer = |layer| {
                let recipe = Recipe::of_layer(Precision::Int4, layer);
                bytes(hidden * (hidden + keys), recipe.queries_keys)
                    + bytes(hidden * keys, recipe.values)
                    + bytes(hidden * hidden, recipe.o)
                    + bytes(2 * hidden * inner, recipe.gate_up)
                    + bytes(hidden * inner, recipe.down)
            };
            let ours = (0..layers).map(of_layer).sum::<usize>() + bytes(head, Recipe::of_head(Precision::Int4));
            let weights = layers * hidden * (2 * hidden + 2 * keys + 3 * inner);
            // 32 weights of Q8_0, which the head is in, and their scale.
            let q4_0 = bytes(weights, Precision::Int4) + head / 32 * 34;
            println!("{hidden}: {ours} bytes a step, q4_0 {q4_0}");
            assert!(hidden != 576 || ours <= q4_0, "{ours} > {q4_0}");
            assert!(ours < weights + head, "int8 reads less");
        }
    }
}
