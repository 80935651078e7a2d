//! What a pass is for.

use crate::largest::Largest;

/// What is wanted of a pass: of its last token's logits [vocab], or of all tokens' [tokens, vocab].
pub enum Wanted<'a> {
    Nothing,
    Logits(&'a mut Vec<f32>),
    Largest(&'a mut Largest),
    All(&'a mut Vec<f32>),
}
