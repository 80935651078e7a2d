//! Which tensors are the token embedding and the head: the stored ones decide, and the flags are
//! held against them.
//!
//! transformers 4 ties by the flag of `text_config`, transformers 5 by the one at top level, and
//! whoever saves a model need not agree with either.

use super::loader::Loader;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::log;

const EMBEDDING: &str = "model.text_model.embed_tokens";
const HEAD: &str = "lm_head";

/// The names of the layers whose `weight` [vocab, hidden] is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub embedding: &'static str,
    pub head: &'static str,
}

impl Ends {
    /// Chooses them; `root` stands at the root. A contradiction that would change logits is an
    /// error.
    pub fn choose(root: &Loader<'_>, config: &ModelConfig) -> Result<Self> {
        let weights = root.weights;
        let stored = |layer: &str| weights.has(&format!("{layer}.weight"));
        let (tied, text_tied) = (config.tie_word_embeddings, config.text_tie_word_embeddings);
        let file = weights.name();
        if !stored(HEAD) {
            if !(tied || text_tied) {
                return Err(Error::invalid_model(format!(
                    "{file}: has no {HEAD}.weight, and config.json says tie_word_embeddings: false, so nothing says what the head \
                     is; store it, or say true if it is the embedding"
                )));
            }
            return Ok(Self { embedding: EMBEDDING, head: EMBEDDING });
        }
        if !tied {
            if text_tied {
                log::info(format_args!(
                    "{file}: {HEAD}.weight is stored and used; text_config.tie_word_embeddings is not"
                ));
            }
            return Ok(Self { embedding: EMBEDDING, head: HEAD });
        }
        if !stored(EMBEDDING) {
            // The reference ties whichever of the two is there.
            return Ok(Self { embedding: HEAD, head: HEAD });
        }
        let shape = [config.text.vocab_size, config.text.hidden_size];
        if weights.equal(&format!("{EMBEDDING}.weight"), &format!("{HEAD}.weight"), shape)? {
            return Ok(Self { embedding: EMBEDDING, head: EMBEDDING });
        }
        Err(Error::invalid_model(format!(
            "{file}: {HEAD}.weight is stored and differs from {EMBEDDING}.weight, but config.json says tie_word_embeddings: true; say \
             false if the stored head is right, or store none"
        )))
    }
}
