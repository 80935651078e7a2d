use std::sync::{Arc, Mutex};

use super::*;
use crate::kernels::aligned::Aligned;
use crate::kernels::math::tests::{largest_difference, numbers};
use crate::kernels::rows::FEW;

const SHAPES: [(usize, usize, usize); 8] =
    [(1, 1, 1), (1, 64, 64), (1, 576, 1536), (5, 33, 17), (7, 100, 65), (130, 48, 130), (13, 3, 200), (129, 257, 79)];

const ALL: [Precision; 5] = [Precision::Bf16, Precision::Int8, Precision::Int4, Precision::Int5, Precision::Int6];

#[derive(Clone)]
struct Case {
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
}

impl Case {
    fn new((rows, inputs, outputs): (usize, usize, usize)) -> Self {
        Self { x: numbers(rows * inputs, 1), w: numbers(outputs * inputs, 77), bias: numbers(outputs, 5), inputs }
    }

    fn ours(&self, precision: Precision, cpu: Cpu, then: Then) -> Vec<f32> {
        let read = |output: usize, row: &mut [f32]| row.copy_from_slice(&self.w[output * self.inputs..][..self.inputs]);
        let shape = (self.w.len() / self.inputs, self.inputs);
        let linear = PackedLinear::new(shape, read, self.bias.clone(), precision, None, cpu);
        let mut rows = Rows { fine: true, ..Rows::default() };
        let mut out = vec![0.5; self.x.len() / self.inputs * linear.outputs()];
        rows.convert(precision, &self.x, self.inputs, cpu);
        linear.multiply(&rows, &mut out, then);
        out
    }

    fn exact(&self) -> Vec<f32> {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
        let rows = self.x.chunks(self.inputs);
        let row = |x| self.w.chunks(self.inputs).zip(&self.bias).map(move |(w, &b)| (dot(x, w) + f64::from(b)) as f32);
        rows.flat_map(row).collect()
    }
}

#[test]
fn a_product_is_exact_but_for_its_precisions_rounding() {
    for shape in SHAPES {
        let case = Case::new(shape);
        let roundings = [2f32.powi(-8), 1.0 / 127.0, 1.0 / 8.0, 1.0 / 16.0, 1.0 / 32.0];
        for (precision, rounding) in ALL.into_iter().zip(roundings) {
            // Each product is off by the rounding of both factors, which lie in -1 to 1; they
            // add up like a random walk.
            let tolerance = 4.0 * rounding * (case.inputs as f32).sqrt();
            let ours = case.ours(precision, Cpu::Portable, Then::Store);
            let difference = largest_difference(&ours, &case.exact());
            assert!(difference <= tolerance, "{precision:?} {shape:?}: {difference} > {tolerance}");
        }
    }
}

#[test]
fn every_kernel_is_the_portable_one() {
    for shape in SHAPES {
        let case = Case::new(shape);
        for precision in ALL {
            for then in [Then::Store, Then::Add] {
                let portable = case.ours(precision, Cpu::Portable, then);
                for cpu in Cpu::available() {
                    let difference = largest_difference(&case.ours(precision, cpu, then), &portable);
                    // Integers are exact; floats differ by the order of summation.
                    let tolerance = if precision == Precision::Int8 { 1e-5 } else { 1e-6 * case.inputs as f32 };
                    assert!(difference <= tolerance, "{cpu:?} {precision:?} {then:?} {shape:?}: {difference}");
                }
            }
        }
    }
}

#[test]
fn outputs_may_be_kept_in_two_ways() {
    struct Kept(Aligned<u8>);
    impl AsRef<[u8]> for Kept {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let kept = |bytes: &[u8]| {
        let mut kept = Kept(Aligned::zeros(bytes.len()));
        kept.0.copy_from_slice(bytes);
        Mapped::new(Arc::new(kept), 0..bytes.len())
    };
    const ROWS: usize = 18;
    const OUTPUTS: usize = 200;
    let case = Case::new((ROWS, 70, OUTPUTS));
    let shape = (OUTPUTS, case.inputs);
    let read = |output: usize, row: &mut [f32]| row.copy_from_slice(&case.w[output * case.inputs..][..case.inputs]);
    for (cpu, rows) in Cpu::available().into_iter().flat_map(|cpu| [1, ROWS].map(|rows| (cpu, rows))) {
        let product = |packed: &PackedLinear| {
            let (mut x, mut out) = (Rows::default(), vec![0.0; rows * OUTPUTS]);
            x.convert(packed.precision(), &case.x[..rows * case.inputs], case.inputs, cpu);
            packed.multiply(&x, &mut out, Then::Store);
            out
        };
        let packed = |mix: Mix| PackedLinear::new(shape, read, case.bias.clone(), mix, None, cpu);
        let [four, six] = [Precision::Int4, Precision::Int6].map(|precision| product(&packed(precision.into())));
        for count in [0, 64, 130, 199, OUTPUTS] {
            let mix = Mix { first: Precision::Int4, count, rest: Precision::Int6 };
            let ours = packed(mix);
            let mut arrays = ours.arrays().into_iter().map(kept);
            let take = |_| arrays.next().ok_or(());
            let restored = PackedLinear::restore(shape, case.bias.clone(), mix, cpu, take).ok().unwrap();
            assert_eq!(product(&ours), product(&restored), "{cpu:?} {rows} {mix:?}");
            for (at, ours) in product(&ours).into_iter().enumerate() {
                let whole = if at % OUTPUTS < count / BAND * BAND { four[at] } else { six[at] };
                assert_eq!(ours, whole, "{cpu:?} {rows} {mix:?} {at}");
            }
        }
    }
}

#[test]
fn few_rows_have_16_bits() {
    for case in [(1, 64, 64), (1, 33, 17), (1, 576, 1000)].map(Case::new) {
        // Weights that 8 bits hold exactly: all error is the row's.
        let mut w: Vec<f32> = case.w.iter().map(|w| (w * 127.0).round() / 127.0).collect();
        w.chunks_exact_mut(case.inputs).for_each(|row| row[0] = 1.0);
        let case = Case { w, ..case };
        for then in [Then::Store, Then::Add] {
            let fine = |cpu| case.ours(Precision::Int8, cpu, then);
            let add = if then == Then::Add { 0.5 } else { 0.0 };
            let exact: Vec<f32> = case.exact().iter().map(|x| x + add).collect();
            let many = Case { x: case.x.repeat(FEW + 1), ..case.clone() }.ours(Precision::Int8, Cpu::Portable, then);
            let coarse = largest_difference(&many[..exact.len()], &exact);
            let difference = largest_difference(&fine(Cpu::Portable), &exact);
            assert!(difference < 0.05 * coarse, "{then:?}: {difference}, {coarse}");
            for cpu in Cpu::available() {
                assert!(largest_difference(&fine(cpu), &fine(Cpu::Portable)) < 1e-5, "{cpu:?} {then:?}");
            }
        }
    }
}

/// Whatever is said in one step or in one pass with others is the same.
#[test]
fn few_rows_are_what_each_is_alone() {
    let (inputs, outputs) = (100, 200);
    for (count, precision) in (2..=FEW).flat_map(|count| [(count, Precision::Int8), (count, Precision::Int6)]) {
        let case = Case::new((count, inputs, outputs));
        for cpu in Cpu::available() {
            let alone = |row| Case { x: case.x[row * inputs..][..inputs].to_vec(), ..case.clone() };
            let alone: Vec<f32> = (0..count).flat_map(|row| alone(row).ours(precision, cpu, Then::Add)).collect();
            assert_eq!(case.ours(precision, cpu, Then::Add), alone, "{cpu:?} {count} {precision:?}");
        }
    }
}

#[test]
fn a_rows_parts_are_its_product() {
    for case in [(1, 64, 64), (1, 33, 17), (1, 40, 1000)].map(Case::new) {
        let (read, outputs) = (
            |output: usize, row: &mut [f32]| row.copy_from_slice(&case.w[output * case.inputs..][..case.inputs]),
            case.bias.len(),
        );
        for cpu in Cpu::available() {
            let linear = PackedLinear::new((outputs, case.inputs), read, case.bias.clone(), Precision::Int8, None, cpu);
            let mut row = Rows::default();
            row.convert(Precision::Int8, &case.x, case.inputs, cpu);
            let (mut whole, mut out) = (vec![0.0; outputs], vec![0.0; outputs]);
            linear.multiply(&row, &mut whole, Then::Store);
            let parts = Mutex::new(vec![f32::NAN; outputs]);
            linear.multiply_row(&row, &mut out, |first, part| {
                parts.lock().unwrap()[first..][..part.len()].copy_from_slice(part);
            });
            assert_eq!((&out, &parts.into_inner().unwrap()), (&whole, &whole), "{cpu:?}");
        }
    }
}

#[test]
fn results_are_added_to_what_is_there() {
    let case = Case::new((7, 100, 65));
    for precision in ALL {
        for cpu in Cpu::available() {
            let stored: Vec<f32> = case.ours(precision, cpu, Then::Store).iter().map(|x| x + 0.5).collect();
            assert!(largest_difference(&case.ours(precision, cpu, Then::Add), &stored) < 1e-5);
        }
    }
}
