//! Element-wise operations in place, on the caller's thread pool.
//!
//! Candle 0.11 runs its own on one process-wide pool with a thread per core, whatever `num_threads`
//! says. Off the CPU, these are candle's.

use candle_core::{CpuStorage, D, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

/// Elements that one thread takes at a time: enough to be worth a task, few enough to share out.
const CHUNK: usize = 16 * 1024;

/// `x + y`, with `y` repeated along the leading dimensions of `x`.
///
/// Like all functions here it takes a tensor that nobody else holds: its memory becomes the result.
pub fn add(x: Tensor, y: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.broadcast_add(y);
    }
    x.inplace_op2(&y.contiguous()?, &Pairwise { name: "add", function: |x, y| x + y })?;
    Ok(x)
}

/// `silu(gate) * up`.
pub fn silu_mul(gate: Tensor, up: &Tensor) -> Result<Tensor> {
    if !gate.device().is_cpu() {
        return gate.silu()? * up;
    }
    gate.inplace_op2(up, &Pairwise { name: "silu-mul", function: |gate, up| gate / (1.0 + (-gate).exp()) * up })?;
    Ok(gate)
}

/// GELU by its tanh approximation, as `gelu_pytorch_tanh`.
pub fn gelu(x: Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.gelu();
    }
    x.inplace_op1(&Gelu)?;
    Ok(x)
}

/// Softmax over the last dimension of `scores * scale + mask`, in f32; `mask` is repeated as `y` in
/// [`add`].
pub fn softmax(scores: Tensor, scale: f64, mask: Option<&Tensor>) -> Result<Tensor> {
    if !scores.device().is_cpu() {
        let mut scaled = (scores.to_dtype(candle_core::DType::F32)? * scale)?;
        if let Some(mask) = mask {
            let repeated = scaled.elem_count() / mask.elem_count();
            let shape = scaled.shape().clone();
            scaled =
                scaled.reshape((repeated, mask.elem_count()))?.broadcast_add(&mask.flatten_all()?)?.reshape(shape)?;
        }
        return candle_nn::ops::softmax_last_dim(&scaled)?.to_dtype(scores.dtype());
    }
    let op = Softmax { width: scores.dim(D::Minus1)?, scale: scale as f32 };
    match mask {
        Some(mask) => scores.inplace_op2(mask, &op)?,
        None => scores.inplace_op1(&op)?,
    }
    Ok(scores)
}

/// The element types that a checkpoint computes in on the CPU.
trait Float: Copy + Send + Sync {
    fn to_f32(self) -> f32;
    fn from_f32(x: f32) -> Self;
}

impl Float for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Float for bf16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
}

fn values<'a, T>(all: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => bail!("an element-wise operand is not contiguous"),
    }
}

fn values_mut<'a, T>(all: &'a mut [T], layout: &Layout) -> Result<&'a mut [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut all[start..end]),
        None => bail!("an element-wise operand is not contiguous"),
    }
}

/// Applies `function` to each element of `x` and its partner in `y`, which starts again when it
/// ends.
fn pairwise<T: Float>(x: &mut [T], y: &[T], function: impl Fn(f32, f32) -> f32 + Sync) -> Result<()> {
    if y.is_empty() || !x.len().is_multiple_of(y.len()) {
        bail!("{} elements cannot be repeated over {}", y.len(), x.len());
    }
    x.par_chunks_mut(CHUNK).enumerate().for_each(|(i, mut x)| {
        let mut at = i * CHUNK % y.len();
        while !x.is_empty() {
            let length = x.len().min(y.len() - at);
            let (now, later) = x.split_at_mut(length);
            for (x, y) in now.iter_mut().zip(&y[at..]) {
                *x = T::from_f32(function(x.to_f32(), y.to_f32()));
            }
            (x, at) = (later, 0);
        }
    });
    Ok(())
}

struct Pairwise {
    name: &'static str,
    function: fn(f32, f32) -> f32,
}

impl InplaceOp2 for Pairwise {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, x_layout: &Layout, y: &CpuStorage, y_layout: &Layout) -> Result<()> {
        match (x, y) {
            (CpuStorage::F32(x), CpuStorage::F32(y)) => {
                pairwise(values_mut(x, x_layout)?, values(y, y_layout)?, self.function)
            }
            (CpuStorage::BF16(x), CpuStorage::BF16(y)) => {
                pairwise(values_mut(x, x_layout)?, values(y, y_layout)?, self.function)
            }
            _ => bail!("{}: f32 or bf16 expected, and the same twice", self.name),
        }
    }
}

struct Gelu;

impl Gelu {
    fn apply<T: Float>(x: &mut [T]) {
        const SQRT_2_OVER_PI: f32 = 0.797_884_6;
        x.par_chunks_mut(CHUNK).flatten().for_each(|value| {
            let x = value.to_f32();
            *value = T::from_f32(0.5 * x * (1.0 + (SQRT_2_OVER_PI * x * (1.0 + 0.044715 * x * x)).tanh()));
        });
    }
}

impl InplaceOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match x {
            CpuStorage::F32(x) => Self::apply(values_mut(x, layout)?),
            CpuStorage::BF16(x) => Self::apply(values_mut(x, layout)?),
            _ => bail!("gelu: f32 or bf16 expected"),
        }
        Ok(())
    }
}

struct Softmax {
    /// Scores of one row.
    width: usize,
    scale: f32,
}

impl Softmax {
    /// `mask`: some rows of this width, started again when they end; empty: none.
    fn apply<T: Float>(&self, scores: &mut [T], mask: &[T]) -> Result<()> {
        if !mask.len().is_multiple_of(self.width) {
            bail!("a mask of {} elements for rows of {}", mask.len(), self.width);
        }
        let rows = (CHUNK / self.width).max(1);
        scores.par_chunks_mut(rows * self.width).enumerate().for_each(|(i, chunk)| {
            let mut buffer = vec![0.0; self.width];
            for (j, row) in chunk.chunks_exact_mut(self.width).enumerate() {
                let start = if mask.is_empty() { 0 } else { (i * rows + j) * self.width % mask.len() };
                self.row(row, mask.get(start..start + self.width).unwrap_or_default(), &mut buffer);
            }
        });
        Ok(())
    }

    fn row<T: Float>(&self, row: &mut [T], mask: &[T], buffer: &mut [f32]) {
        for (out, score) in buffer.iter_mut().zip(row.iter()) {
            *out = score.to_f32() * self.scale;
        }
        for (out, mask) in buffer.iter_mut().zip(mask) {
            *out += mask.to_f32();
        }
        let max = buffer.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for out in buffer.iter_mut() {
            *out = (*out - max).exp();
            sum += *out;
        }
        for (score, out) in row.iter_mut().zip(buffer) {
            *score = T::from_f32(*out / sum);
        }
    }
}

impl InplaceOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, scores: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match scores {
            CpuStorage::F32(scores) => self.apply(values_mut(scores, layout)?, &[]),
            CpuStorage::BF16(scores) => self.apply(values_mut(scores, layout)?, &[]),
            _ => bail!("softmax: f32 or bf16 expected"),
        }
    }
}

impl InplaceOp2 for Softmax {
    fn name(&self) -> &'static str {
        "masked softmax"
    }

    fn cpu_fwd(&self, scores: &mut CpuStorage, layout: &Layout, mask: &CpuStorage, mask_layout: &Layout) -> Result<()> {
        match (scores, mask) {
            (CpuStorage::F32(scores), CpuStorage::F32(mask)) => {
                self.apply(values_mut(scores, layout)?, values(mask, mask_layout)?)
            }
            (CpuStorage::BF16(scores), CpuStorage::BF16(mask)) => {
                self.apply(values_mut(scores, layout)?, values(mask, mask_layout)?)
            }
            _ => bail!("softmax: f32 or bf16 expected, and the same twice"),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    /// Numbers from -3 to 3 in no order.
    fn numbers(shape: &[usize], dtype: DType) -> Tensor {
        let count = shape.iter().product::<usize>() as u32;
        let values: Vec<f32> = (0..count).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 2.8e6 - 3.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    fn assert_close(ours: &Tensor, candle: &Tensor) {
        let all =
            |t: &Tensor| -> Vec<f32> { t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap() };
        assert_eq!((ours.dims(), ours.dtype()), (candle.dims(), candle.dtype()));
        let tolerance = if ours.dtype() == DType::BF16 { 2e-2 } else { 1e-5 };
        for (a, b) in all(ours).iter().zip(all(candle)) {
            assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} {b}");
        }
    }

    /// Larger than several chunks, and no multiple of one.
    const SHAPE: [usize; 3] = [3, 170, 99];

    #[test]
    fn each_is_candles() {
        for dtype in [DType::F32, DType::BF16] {
            let (x, y) = (|| numbers(&SHAPE, dtype), numbers(&SHAPE, dtype).affine(0.7, 0.1).unwrap());
            assert_close(&add(x(), &y).unwrap(), &(x() + &y).unwrap());
            assert_close(&gelu(x()).unwrap(), &x().gelu().unwrap());
            assert_close(&silu_mul(x(), &y).unwrap(), &(x().silu().unwrap() * &y).unwrap());
            let expected = candle_nn::ops::softmax_last_dim(&x().affine(0.3, 0.0).unwrap()).unwrap();
            assert_close(&softmax(x(), 0.3, None).unwrap(), &expected);
        }
    }

    #[test]
    fn the_second_operand_is_repeated() {
        let x = || numbers(&SHAPE, DType::F32);
        for shape in [vec![99], vec![170, 99], vec![1, 170, 99]] {
            let y = numbers(&shape, DType::F32);
            assert_close(&add(x(), &y).unwrap(), &x().broadcast_add(&y).unwrap());
        }
        let mask = numbers(&[170, 99], DType::F32);
        let expected = candle_nn::ops::softmax_last_dim(&x().broadcast_add(&mask).unwrap()).unwrap();
        assert_close(&softmax(x(), 1.0, Some(&mask)).unwrap(), &expected);
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let x = || numbers(&SHAPE, DType::F32);
        assert!(add(x(), &numbers(&[98], DType::F32)).is_err());
        assert!(add(x(), &numbers(&[99], DType::BF16)).is_err());
        assert!(gelu(x().transpose(0, 1).unwrap()).is_err());
        assert!(softmax(x(), 1.0, Some(&numbers(&[98], DType::F32))).is_err());
    }
}
