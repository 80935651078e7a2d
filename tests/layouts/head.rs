//! What the head is: the stored tensors decide, and a flag that contradicts them is an error or
//! changes nothing.

use std::collections::BTreeMap;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use smolvlm::{DTypeKind, ErrorKind};

use crate::copy::{Copy, FLAT, Said, ask};

const WEIGHTS: &str = "model.safetensors";
const EMBEDDING: &str = "model.text_model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    NoHead,
    SameHead,
    /// The same numbers in twice as many bits.
    WiderHead,
    OtherHead,
    HeadAlone,
    Neither,
}

type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// Writes the weights with a head; the embedding in bf16, which f32 holds exactly.
fn store(copy: &Copy, original: &[u8], stored: Stored) {
    let file = SafeTensors::deserialize(original).unwrap();
    let mut tensors: BTreeMap<String, Tensor> =
        file.iter().map(|(n, t)| (n.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect();
    let (_, shape, wide) = tensors.remove(EMBEDDING).unwrap();
    let narrow: Vec<u8> = wide.chunks_exact(4).flat_map(|number| number[2..].to_vec()).collect();
    let widened = narrow.chunks_exact(2).flat_map(|half| [0, 0, half[0], half[1]]).collect();
    let other = narrow.chunks_exact(2 * shape[1]).rev().flatten().copied().collect();
    let embedding = (Dtype::BF16, shape.clone(), narrow.clone());
    if !matches!(stored, Stored::HeadAlone | Stored::Neither) {
        tensors.insert(EMBEDDING.to_owned(), embedding.clone());
    }
    let head = match stored {
        Stored::NoHead | Stored::Neither => None,
        Stored::SameHead | Stored::HeadAlone => Some(embedding),
        Stored::WiderHead => Some((Dtype::F32, shape, widened)),
        Stored::OtherHead => Some((Dtype::BF16, shape, other)),
    };
    tensors.extend(head.map(|head| (HEAD.to_owned(), head)));
    let views =
        tensors.iter().map(|(n, (dtype, shape, data))| (n, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &copy.path().join(WEIGHTS)).unwrap();
}

enum Expected {
    Tied,
    Own,
    Error(&'static str),
}
use Expected::{Error, Own, Tied};
use Stored::{HeadAlone, Neither, NoHead, OtherHead, SameHead, WiderHead};

#[test]
fn the_stored_tensors_decide_and_a_contradiction_is_an_error() {
    let copy = Copy::new("head", FLAT);
    let original = std::fs::read(copy.path().join(WEIGHTS)).unwrap();
    let say = |top: Option<bool>, text: Option<bool>| {
        copy.edit("config.json", |config| {
            config["tie_word_embeddings"] = json!(top);
            config["text_config"]["tie_word_embeddings"] = json!(text);
            // Not said at all.
            config.as_object_mut().unwrap().retain(|_, value| *value != Value::Null);
        });
    };
    let (yes, no) = (Some(true), Some(false));
    let answer = |dtype| -> Said { ask(&copy.load_as(dtype).unwrap()) };
    for dtype in [DTypeKind::F32, DTypeKind::Int8, DTypeKind::Bf16] {
        say(yes, yes);
        store(&copy, &original, NoHead);
        let tied = answer(dtype);
        say(no, no);
        store(&copy, &original, OtherHead);
        let own = answer(dtype);
        assert_ne!(tied, own);
        for (stored, top, text, expected) in [
            // As transformers 5 saves a tied one: it leaves the text's flag at its default.
            (NoHead, yes, no, Tied),
            (NoHead, yes, None, Tied),
            // As transformers 4 did.
            (NoHead, no, yes, Tied),
            (NoHead, None, yes, Tied),
            (NoHead, no, no, Error("has no lm_head.weight, and config.json says tie_word_embeddings: false")),
            (NoHead, None, None, Error("has no lm_head.weight, and config.json says tie_word_embeddings: false")),
            // A merged adapter, or a file that holds both names of one tensor.
            (SameHead, yes, yes, Tied),
            (SameHead, no, yes, Tied),
            (SameHead, None, None, Tied),
            (WiderHead, yes, None, Tied),
            (WiderHead, no, None, Tied),
            (OtherHead, no, yes, Own),
            (OtherHead, None, yes, Own),
            (OtherHead, None, None, Own),
            (
                OtherHead,
                yes,
                no,
                Error("lm_head.weight is stored and differs from model.text_model.embed_tokens.weight"),
            ),
            (
                OtherHead,
                yes,
                yes,
                Error("lm_head.weight is stored and differs from model.text_model.embed_tokens.weight"),
            ),
            (HeadAlone, yes, None, Tied),
            (HeadAlone, no, None, Error("has no tensor model.text_model.embed_tokens.weight")),
            (Neither, yes, yes, Error("has no tensor model.text_model.embed_tokens.weight")),
        ] {
            say(top, text);
            store(&copy, &original, stored);
            let what = format!("{dtype:?}, {stored:?}, flags {top:?} and {text:?}");
            match expected {
                Tied => assert_eq!(answer(dtype), tied, "{what}"),
                Own => assert_eq!(answer(dtype), own, "{what}"),
                Error(message) => {
                    let error = copy.load_as(dtype).err().unwrap_or_else(|| panic!("{what}: loads"));
                    assert_eq!(error.kind(), ErrorKind::InvalidModel);
                    assert!(error.message().contains(message), "{what}: {error}");
                }
            }
        }
    }
}
