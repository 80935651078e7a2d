//! Element-wise arithmetic in a form that compilers vectorise: the same source, compiled again for
//! wider registers.

pub(super) mod lanes;
mod nonlinear;
mod quantise;
pub(super) mod vectorised;
mod vectors;

pub(super) use nonlinear::{
    DITHERED, centre, dither, exp2_row, exp2_row_int8, exp2_row_int16, gelu, layer_norm, power_of_two, rms_norm,
    silu_mul,
};
pub(crate) use quantise::from_bf16;
pub(super) use quantise::{
    TWICE, WidePanel, add_int16, centre_to_int8, from_int16, high_half, int8_scale, interleave_int8, low_half,
    round_bf16, set_high, set_low, sign, sign_and_sum, spread_int16, to_bf16, to_int8_elsewhere,
    to_int8_twice_elsewhere, to_int16_elsewhere, to_levels, widen,
};
pub(crate) use vectors::multiply;
pub(super) use vectors::{add_scaled, dot, scale, scale_and_add};

#[cfg(test)]
pub(super) mod tests {
    use half::bf16;

    use super::nonlinear::{exp2, reciprocal, sigmoid};
    use super::*;
    use crate::kernels::cpu::Cpu;
    use crate::kernels::isa::{keys_to_int8, to_int8, to_int16};
    use crate::kernels::layout::{KeyPanel, LANES, OFFSET};

    /// Numbers from -1 to 1 in no order.
    pub fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let number = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0;
        (0..count as u32).map(number).collect()
    }

    pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        let difference = |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
        a.iter().zip(b).map(difference).fold(0.0, f32::max)
    }

    #[test]
    fn powers_and_reciprocals_are_within_their_bounds() {
        for i in -12_599..=12_600 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp2();
            let error = (f64::from(exp2::<false>(x, 1.0)) - exact).abs() / exact;
            assert!(error < 8e-5, "{x}: {error}");
            let x = x.abs().min(125.0).exp2();
            let error = (f64::from(reciprocal::<false>(x)) * f64::from(x) - 1.0).abs();
            assert!(error < 7e-6, "{x}: {error}");
        }
        assert_eq!(exp2::<false>(f32::NEG_INFINITY, 1.0), exp2::<false>(-126.0, 1.0));
        let far = [f32::NEG_INFINITY, -1e30, -100.0, 100.0, 1e30, f32::INFINITY].map(sigmoid::<false>);
        assert!(
            far[..3].iter().all(|x| (0.0..1e-30).contains(x)) && far[3..].iter().all(|x| (x - 1.0).abs() < 1e-5),
            "{far:?}"
        );
    }

    #[test]
    fn functions_are_what_they_say_on_every_processor() {
        for count in [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100] {
            let x: Vec<f32> = numbers(count, 3).iter().map(|x| x * 6.0).collect();
            for cpu in Cpu::available() {
                let mut ours = x.clone();
                gelu(&x, &mut ours, cpu);
                let tanh = |x: f32| 0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x.powi(3))).tanh());
                assert!(largest_difference(&ours, &x.iter().map(|&x| tanh(x)).collect::<Vec<_>>()) < 2e-4);

                let mut ours = vec![0.0; count];
                silu_mul(&x, &numbers(count, 9), &mut ours, cpu);
                let silu = |(x, up): (&f32, f32)| x / (1.0 + (-x).exp()) * up;
                assert!(
                    largest_difference(&ours, &x.iter().zip(numbers(count, 9)).map(silu).collect::<Vec<_>>()) < 6e-4
                );

                let mut far = x.clone();
                far.iter_mut().skip(1).step_by(3).zip([-90.0, -1e4, f32::NEG_INFINITY]).for_each(|(x, y)| *x = y);
                for x in [&x, &far] {
                    let mut words = vec![0; count.div_ceil(2)];
                    let (largest, sum) = exp2_row(x, f32::NEG_INFINITY, &mut words, cpu);
                    assert_eq!(largest, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                    let ours: Vec<f32> = words.iter().flat_map(|&w| [low_half(w), high_half(w)]).collect();
                    let exact: Vec<f32> = x.iter().map(|x| (x - largest).exp2()).collect();
                    assert!(largest_difference(&ours[..count], &exact) < 2f32.powi(-9) + 8e-5);
                    assert!((sum - ours.iter().sum::<f32>()).abs() < 1e-5 * count as f32);
                    let (above, less) = exp2_row(x, largest + 1.0, &mut words, cpu);
                    assert!(above == largest + 1.0 && (less - sum / 2.0).abs() < 1e-5 * count as f32);

                    let mut bytes = vec![0; count];
                    let (same, sum) = exp2_row_int8(x, 1.0, &mut bytes, cpu);
                    assert!(same == largest && sum == bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>());
                    let ours: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
                    assert!(largest_difference(&ours, &exact) < 1.0 / 255.0 + 8e-5);

                    let (mut high, mut low) = (vec![0; count], vec![0; count]);
                    let factors: Vec<f32> = numbers(count, 21).iter().map(|x| x.abs()).collect();
                    let (same, sum) = exp2_row_int16(x, 1.0, &factors, [&mut high, &mut low], cpu);
                    let all = exact.iter().map(|x| x * 65535.0).sum::<f32>();
                    assert!(same == largest && (sum as f32 - all).abs() < 0.5 * count as f32 + all * 8e-5);
                    let bytes = high.iter().zip(&low);
                    let ours: Vec<f32> =
                        bytes.map(|(&h, &l)| f32::from(u16::from_be_bytes([h, l])) / 65535.0).collect();
                    let exact: Vec<f32> = exact.iter().zip(&factors).map(|(x, factor)| x * factor).collect();
                    assert!(largest_difference(&ours, &exact) < 0.5 / 65535.0 + 8e-5);
                }

                let (weight, bias) = (numbers(count, 11), numbers(count, 12));
                let mean = |x: &[f32]| x.iter().map(|&x| f64::from(x)).sum::<f64>() / count as f64;
                let squares =
                    |x: &[f32], mean: f64| x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count as f64;
                let normed = |mean: f64, bias: &[f32]| -> Vec<f32> {
                    let scale = (squares(&x, mean) + 1e-3).sqrt();
                    let all = x.iter().zip(&weight).zip(bias);
                    all.map(|((&x, &w), &b)| ((f64::from(x) - mean) / scale * f64::from(w) + f64::from(b)) as f32)
                        .collect()
                };
                layer_norm(&x, &weight, &bias, 1e-3, &mut ours, cpu);
                assert!(largest_difference(&ours, &normed(mean(&x), &bias)) < 1e-5);
                rms_norm(&x, &weight, 1e-3, &mut ours, cpu);
                assert!(largest_difference(&ours, &normed(0.0, &vec![0.0; count])) < 1e-5);

                let mut words = vec![0; count.div_ceil(2)];
                to_bf16(&x, &mut words, cpu);
                let halves: Vec<f32> = words.iter().flat_map(|&w| [low_half(w), high_half(w)]).collect();
                let exact: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
                assert_eq!(halves[..count], exact);

                let mut words = vec![0; count.div_ceil(4)];
                let scale = to_int8(&x, &mut words, cpu);
                let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                let back: Vec<f32> = bytes.iter().map(|&b| (i32::from(b) - OFFSET) as f32 * scale).collect();
                assert!(largest_difference(&back[..count], &x) <= scale / 2.0 * 1.001);
                assert!(back[count..].iter().all(|&x| x == 0.0));
            }
        }
    }

    #[test]
    fn small_weights_in_8_bits_are_right_on_average() {
        // Each is less than half of what 8 bits have.
        for weight in [0.4f32, 0.1, 0.02] {
            for cpu in Cpu::available() {
                let mut scores = vec![(weight / 255.0).log2(); 1025];
                scores[7] = 0.0;
                let mut bytes = vec![0; scores.len()];
                let (_, sum) = exp2_row_int8(&scores, 1.0, &mut bytes, cpu);
                let exact = 255.0 + 1024.0 * weight;
                assert!((sum as f32 - exact).abs() < 5.0, "{weight} {cpu:?}: {sum}, {exact}");
                assert!(bytes.iter().filter(|&&byte| byte > 1).count() == 1, "{weight} {cpu:?}");
            }
        }
    }

    #[test]
    fn keys_in_8_bits_are_off_by_half_a_step_on_every_processor() {
        for (head_dim, count) in
            [1, 4, 6, 63, 64, 65, 72, 128, 130].into_iter().flat_map(|d| [(d, 1), (d, 15), (d, 16)])
        {
            for cpu in Cpu::available() {
                let (x, mean) = (numbers(count * head_dim, 3), numbers(head_dim, 5));
                let mut keys = vec![0; x.len()];
                let rows = keys.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim));
                let key_scales: Vec<f32> = rows.map(|(key, x)| to_int16(x, key, cpu)).collect();
                let groups = head_dim.div_ceil(4);
                let (mut words, mut scales, mut sums) = (vec![0; groups * LANES], [0.0; LANES], [0; LANES]);
                let panel = KeyPanel { words: &mut words, scales: &mut scales, sums: &mut sums };
                keys_to_int8((&keys, &key_scales), &mean, panel, cpu);
                for (lane, x) in x.chunks_exact(head_dim).enumerate() {
                    let word = |group: usize| words[group * LANES + lane].to_le_bytes();
                    let bytes: Vec<i8> = (0..groups).flat_map(word).map(|byte| byte as i8).collect();
                    let ours: Vec<f32> =
                        bytes.iter().zip(&mean).map(|(&b, m)| f32::from(b) * scales[lane] + m).collect();
                    let bound = scales[lane] * 0.501 + key_scales[lane] * 0.501;
                    assert!(largest_difference(&ours, x) <= bound, "{cpu:?} {head_dim} {count} {lane}");
                    assert_eq!(bytes.iter().map(|&b| i32::from(b)).sum::<i32>(), sums[lane]);
                    assert!(bytes[head_dim..].iter().all(|&b| b == 0));
                }
            }
        }
    }
}
