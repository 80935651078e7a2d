//! Products with keys, and with values.

use crate::kernels::cpu::Cpu;
use crate::kernels::isa;
use crate::kernels::layout::{LANES, PANELS, Strides};
use crate::kernels::product::{Block, Out, Panels};
use crate::kernels::rows::Rows;

/// `out` [rows, outputs] = `rows` times `panels`, or that is added to it, on this thread; `ahead`
/// is fetched meanwhile.
pub(super) fn product(
    rows: &Rows,
    panels: Panels<'_>,
    (outputs, strides): (usize, Strides),
    ahead: &[u8],
    cpu: Cpu,
    out: &mut [f32],
    add: bool,
) {
    let row_count = rows.count();
    assert_eq!(out.len(), row_count * outputs);
    let panel_count = outputs.div_ceil(LANES);
    for panel in (0..panel_count).step_by(PANELS) {
        let block = Block {
            rows,
            first_row: 0,
            row_count,
            panels: panels.skip(strides.at(panel, 0), panel * LANES),
            panel_count: PANELS.min(panel_count - panel),
            strides,
            ahead,
        };
        let column = panel * LANES;
        let columns = (PANELS * LANES).min(outputs - column);
        // SAFETY: the rows and columns lie in `out`, which is this function's alone.
        let mut out = unsafe { Out::new(out.as_mut_ptr().add(column), outputs, columns, &[], add) };
        isa::product(&block, &mut out, cpu);
    }
}
