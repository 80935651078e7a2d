//! Each CPU kernel at the shapes of SmolVLM-256M, beside what this machine's two cores reach with
//! the same instructions, or read.
//!
//! `make bench-kernels`; the environment variable `SMOLVLM_CPU` chooses the kernels.

mod roofs;

use std::cell::Cell;
use std::time::Instant;

use criterion::Criterion;
use smolvlm::kernels::{
    self, Attend, Cpu, Heads, Int8KeysValues, Int16KeysValues, KeyValueCache, PackedLinear, Precision, Rows, Then,
};

const THREADS: usize = 2;
const HEAD_DIM: usize = 64;

/// What a kernel is measured by.
#[derive(Clone, Copy)]
enum Work {
    /// Multiplications and additions, in this precision.
    Products(usize, Precision),
    /// Bytes that it has to read.
    Bytes(usize),
}

fn measure(criterion: &mut Criterion, name: &str, work: Work, mut run: impl FnMut() + Send) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build().expect("two threads");
    let best = Cell::new(f64::INFINITY);
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|times| {
            // As in a forward pass: the threads are there before the work, and gone when the roofs
            // are measured.
            let elapsed = pool.install(|| {
                kernels::gather(|| {
                    let start = Instant::now();
                    (0..times).for_each(|_| run());
                    start.elapsed()
                })
            });
            best.set(best.get().min(elapsed.as_secs_f64() / times as f64));
            elapsed
        });
    });
    if best.get().is_infinite() {
        return; // left out by the command line
    }
    let (amount, unit, roof, what) = match work {
        Work::Products(count, precision) => {
            let (roof, what) = roofs::products(Cpu::detect(), precision, THREADS);
            (count, "GFLOP/s", roof, what.to_owned())
        }
        Work::Bytes(count) => {
            (count, "GB/s", roofs::reading(count, THREADS), format!("reading {:.1} MB", count as f64 / 1e6))
        }
    };
    let reached = amount as f64 / best.get() / 1e9;
    println!("{name:<32} {reached:8.1} {unit}, {:3.0} % of {roof:.1}: {what}\n", 100.0 * reached / roof);
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

/// rows x inputs x outputs.
const MATRICES: [(usize, usize, usize); 8] = [
    (1024, 768, 768),
    (1024, 768, 2304),
    (1024, 768, 3072),
    (1024, 3072, 768),
    (128, 576, 576),
    (128, 576, 960),
    (128, 576, 3072),
    (128, 1536, 576),
];
/// inputs x outputs, times one row.
const VECTORS: [(usize, usize); 5] = [(576, 576), (576, 960), (576, 3072), (1536, 576), (576, 49_280)];

/// Of so many weights; those of up to 6 bits have 16 more for the scale of every 32.
fn bytes(weights: usize, precision: Precision) -> usize {
    match precision {
        Precision::Bf16 => weights * 2,
        Precision::Int8 => weights,
        Precision::Int4 => weights * 9 / 16,
        Precision::Int5 => weights * 11 / 16,
        Precision::Int6 => weights * 13 / 16,
    }
}

fn products(criterion: &mut Criterion) {
    for precision in [Precision::Bf16, Precision::Int8, Precision::Int4, Precision::Int5, Precision::Int6] {
        let shapes = MATRICES.into_iter().chain(VECTORS.map(|(inputs, outputs)| (1, inputs, outputs)));
        for (rows, inputs, outputs) in shapes {
            let weights = numbers(inputs * outputs);
            let read = |output: usize, row: &mut [f32]| row.copy_from_slice(&weights[output * inputs..][..inputs]);
            let packed = PackedLinear::new((outputs, inputs), read, Vec::new(), precision, None, Cpu::detect());
            let mut x = Rows::default();
            x.convert(precision, &numbers(rows * inputs), inputs, Cpu::detect());
            let mut out = vec![0.0; rows * outputs];
            let work = match rows {
                1 => Work::Bytes(bytes(inputs * outputs, precision)),
                _ => Work::Products(2 * rows * inputs * outputs, precision),
            };
            measure(criterion, &format!("{precision:?} {rows} x {inputs} x {outputs}"), work, || {
                packed.multiply(&x, std::hint::black_box(&mut out), Then::Store);
            });
        }
    }
}

/// Layers of the decoder.
const LAYERS: usize = 30;

/// All matrices of a decode step, one after another: what each reads comes from as far away as it
/// does there.
fn step(criterion: &mut Criterion) {
    for (precision, of_head) in
        [(Precision::Bf16, Precision::Bf16), (Precision::Int8, Precision::Int8), (Precision::Int4, Precision::Int8)]
    {
        let random = numbers(VECTORS.iter().map(|(inputs, outputs)| inputs * outputs).max().unwrap_or(0));
        let matrix = |(inputs, outputs): (usize, usize), precision| {
            let read = |output: usize, row: &mut [f32]| row.copy_from_slice(&random[output * inputs..][..inputs]);
            let mut x = Rows::default();
            x.convert(precision, &numbers(inputs), inputs, Cpu::detect());
            (
                PackedLinear::new((outputs, inputs), read, Vec::new(), precision, None, Cpu::detect()),
                x,
                vec![0.0; outputs],
            )
        };
        let [layer @ .., head] = VECTORS;
        let size = |(inputs, outputs): (usize, usize)| inputs * outputs;
        let all_bytes = LAYERS * bytes(layer.map(size).iter().sum(), precision) + bytes(size(head), of_head);
        let name = format!("{precision:?} all of a decode step");
        let mut all = Vec::new();
        measure(criterion, &name, Work::Bytes(all_bytes), || {
            if all.is_empty() {
                all = (0..LAYERS).flat_map(|_| layer.map(|shape| matrix(shape, precision))).collect();
                all.push(matrix(head, of_head));
            }
            for (packed, x, out) in &mut all {
                packed.multiply(x, std::hint::black_box(out), Then::Store);
            }
        });
    }
}

/// `tokens` of `heads.0` query heads look at as many positions in `heads.1` heads.
fn attention(
    criterion: &mut Criterion,
    name: &str,
    precision: Precision,
    heads: (usize, usize),
    tokens: usize,
    positions: usize,
) {
    let (width, cached) = (heads.0 * HEAD_DIM, heads.1 * HEAD_DIM);
    let (queries, values) = (numbers(tokens * width), numbers(positions * cached));
    let all = Heads::beside(&values, cached, 0, (heads.1, HEAD_DIM));
    let mut cache = KeyValueCache::new(heads.1, HEAD_DIM, precision, Cpu::detect());
    let mut patches = Int16KeysValues::new(heads.1, HEAD_DIM, Cpu::detect());
    let mut tile = Int8KeysValues::new(heads.1, HEAD_DIM, Cpu::detect());
    let is_vision = heads.0 == heads.1;
    // SAFETY: there is one thread.
    unsafe {
        cache.append(positions).put(0, all, all);
        patches.room(positions).put(0, all, all);
    }
    let stored = if is_vision && precision != Precision::Bf16 {
        tile.set(&patches);
        tile.stored()
    } else {
        cache.stored()
    };
    let causally = (Attend::CausallyFrom(positions - tokens), positions - tokens / 2);
    let (attend, seen) = if is_vision { (Attend::Everywhere, positions) } else { causally };
    let work = match tokens {
        1 => Work::Bytes(positions * KeyValueCache::position_bytes(heads.1, HEAD_DIM, precision) as usize),
        _ => Work::Products(4 * width * tokens * seen, precision),
    };
    let mut out = vec![0.0; tokens * width];
    measure(criterion, &format!("attention {name}"), work, || {
        stored.attend(
            Heads::beside(&queries, width, 0, (heads.0, HEAD_DIM)),
            0.125,
            attend,
            std::hint::black_box(&mut out),
            &[],
        );
    });
}

fn norms(criterion: &mut Criterion) {
    for (rows, width) in [(1024, 768), (128, 576), (1, 576)] {
        let (weight, x) = (numbers(width), numbers(rows * width));
        let mut out = Rows::default();
        let work = Work::Bytes(4 * rows * width);
        measure(criterion, &format!("layer norm {rows} x {width}"), work, || {
            out.layer_norm(Precision::Int8, &x, (&weight, &weight), 1e-6, Cpu::detect());
        });
        measure(criterion, &format!("rms norm {rows} x {width}"), work, || {
            out.rms_norm(Precision::Int8, &x, &weight, 1e-6, Cpu::detect());
        });
    }
}

fn main() {
    println!("kernels: {}; {THREADS} threads", Cpu::detect().name());
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    products(&mut criterion);
    step(&mut criterion);
    attention(&mut criterion, "vision, 1024, int8", Precision::Int8, (12, 12), 1024, 1024);
    attention(&mut criterion, "vision, 1024", Precision::Bf16, (12, 12), 1024, 1024);
    attention(&mut criterion, "prefill, 128, int8", Precision::Int8, (9, 3), 128, 128);
    attention(&mut criterion, "prefill, 1100, int8", Precision::Int8, (9, 3), 1100, 1100);
    attention(&mut criterion, "prefill, 128", Precision::Bf16, (9, 3), 128, 128);
    attention(&mut criterion, "prefill, 1100", Precision::Bf16, (9, 3), 1100, 1100);
    attention(&mut criterion, "decode at 128, int8", Precision::Int8, (9, 3), 1, 128);
    attention(&mut criterion, "decode at 1100, int8", Precision::Int8, (9, 3), 1, 1100);
    attention(&mut criterion, "decode at 128", Precision::Bf16, (9, 3), 1, 128);
    attention(&mut criterion, "decode at 1100", Precision::Bf16, (9, 3), 1, 1100);
    norms(&mut criterion);
}
