//! How weights and activations are kept.

use super::layout::High;

/// How weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    Bf16,
    /// One scale per output; activations are quantised too, with one scale per row.
    Int8,
    /// One scale per output and block of 32 inputs; activations as in `Int8`.
    Int4,
    /// The same, with weights of 5 bits.
    Int5,
    /// Of 6.
    Int6,
}

impl Precision {
    /// What weights in blocks have beyond 4 bits; `None` for others.
    pub(super) fn high(self) -> Option<High> {
        match self {
            Self::Bf16 | Self::Int8 => None,
            Self::Int4 => Some(High::NONE),
            Self::Int5 => Some(High::of(1)),
            Self::Int6 => Some(High::of(2)),
        }
    }

    /// What rows are in for such weights: all blocks take the same ones.
    pub(super) fn of_rows(self) -> Self {
        if self.high().is_some() { Self::Int4 } else { self }
    }
}
