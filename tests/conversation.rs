//! Whole conversations through the library: told elsewhere, told again, continued, and with other
//! pictures.
#![cfg(feature = "candle")]

use std::ops::ControlFlow;
use std::path::Path;

use image::DynamicImage;
use smolvlm::prompt::{Message, Part, Role};
use smolvlm::{Answer, DTypeKind, Engine, EngineOptions, ImageView, Picture, Request, Session};

const LIST: &str = "What objects are in this image?";
const ARROW: &str = "Which way does the arrow point?";

fn demo() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

fn engine(image_cache_bytes: usize) -> Engine {
    Engine::load(&demo(), &EngineOptions { dtype: DTypeKind::F32, image_cache_bytes, ..Default::default() }).unwrap()
}

fn file() -> Vec<u8> {
    std::fs::read(demo().join("test_image.jpg")).unwrap()
}

fn converse(session: &mut Session, messages: &[Message], views: &[ImageView<'_>]) -> smolvlm::Result<Answer> {
    let pictures: Vec<Picture<'_>> = views.iter().map(|&view| Picture { view, split: true }).collect();
    session.converse(messages, &pictures, &Request::new("", &[]), &mut |_| ControlFlow::Continue(()))
}

fn process(session: &mut Session, prompt: &str, views: &[ImageView<'_>]) -> Answer {
    session.process(&Request::new(prompt, views), &mut |_| ControlFlow::Continue(())).unwrap()
}

fn fresh(engine: &Engine, messages: &[Message], views: &[ImageView<'_>]) -> Answer {
    converse(&mut Session::new(engine).unwrap(), messages, views).unwrap()
}

#[test]
fn a_conversation_that_is_told_is_the_one_that_was_held() {
    let engine = engine(0);
    let file = file();
    let views = [ImageView::encoded(&file)];
    let mut session = Session::new(&engine).unwrap();
    let first = process(&mut session, LIST, &views);
    let second = process(&mut session, ARROW, &[]);

    let mut messages =
        vec![Message::question(1, LIST), Message::text(Role::Assistant, &first.text), Message::text(Role::User, ARROW)];
    let mut told = Session::new(&engine).unwrap();
    let answer = converse(&mut told, &messages, &views).unwrap();
    assert_eq!((&answer.prompt_token_ids, &answer.text), (&second.prompt_token_ids, &second.text));
    // It goes on either way, and what the cache holds is used.
    let third = process(&mut session, LIST, &[]);
    assert_eq!(process(&mut told, LIST, &[]).prompt_token_ids, third.prompt_token_ids);
    messages.push(Message::text(Role::Assistant, &second.text));
    messages.push(Message::text(Role::User, LIST));
    let again = converse(&mut told, &messages, &views).unwrap();
    assert_eq!((&again.prompt_token_ids, &again.text), (&third.prompt_token_ids, &third.text));
    assert!(again.metrics.cached_tokens > 100, "{:?}", again.metrics);
}

#[test]
fn the_last_answer_is_continued_where_it_ends() {
    let engine = engine(0);
    let file = file();
    let views = [ImageView::encoded(&file)];
    let mut held = Session::new(&engine).unwrap();
    let whole = process(&mut held, LIST, &views);
    let ids = [&whole.prompt_token_ids[..], &whole.token_ids].concat();
    for cut in [" blue", " orange", " star,"] {
        let begun = &whole.text[..whole.text.find(cut).unwrap() + cut.len()];
        let messages = [Message::question(1, LIST), Message::text(Role::Assistant, begun)];
        let mut session = Session::new(&engine).unwrap();
        let rest = converse(&mut session, &messages, &views).unwrap();
        assert_eq!(format!("{begun}{}", rest.text), whole.text);
        assert_eq!(rest.prompt_token_ids, ids[..rest.prompt_token_ids.len()], "no end and no new turn is between");
        assert!(rest.prompt_token_ids.len() > whole.prompt_token_ids.len());
        // The session remembers one answer.
        let mut other = Session::new(&engine).unwrap();
        process(&mut other, LIST, &views);
        let (next, expected) = (process(&mut session, ARROW, &[]), process(&mut other, ARROW, &[]));
        assert_eq!(next.prompt_token_ids, expected.prompt_token_ids);
    }
    // One that has not begun is a turn like any other.
    let empty = [Message::question(1, LIST), Message::text(Role::Assistant, "")];
    assert_eq!(fresh(&engine, &empty, &views).prompt_token_ids, whole.prompt_token_ids);
}

#[test]
fn pictures_stay_between_texts() {
    let engine = engine(0);
    let file = file();
    let view = ImageView::encoded(&file);
    let text = |text: &str| Part::Text { text: text.into() };
    let ask = |content: Vec<Part>| {
        let views = vec![view; content.iter().filter(|part| **part == Part::Image).count()];
        fresh(&engine, &[Message { role: Role::User, content }], &views).prompt_token_ids
    };
    // `User:<image>`: what is before the first picture's tokens.
    let before = |ids: &[u32], image: u32| ids.iter().position(|id| *id == image).unwrap();
    let first = ask(vec![Part::Image, text("one two")]);
    let image = *first.iter().max_by_key(|id| first.iter().filter(|other| other == id).count()).unwrap();
    let between = ask(vec![text("one"), Part::Image, text(" two")]);
    assert!(before(&between, image) > before(&first, image));
    let two = ask(vec![Part::Image, text("one"), Part::Image, text(" two")]);
    let pieces: Vec<usize> = two.split(|id| *id == image).map(<[u32]>::len).filter(|len| *len > 6).collect();
    assert!(!pieces.is_empty(), "the word stands between the pictures: {two:?}");
    // A turn in two messages is the turn in one.
    let parted = [Message { role: Role::User, content: vec![Part::Image] }, Message::text(Role::User, LIST)];
    assert_eq!(fresh(&engine, &parted, &[view]).prompt_token_ids, ask(vec![Part::Image, text(LIST)]));
}

/// Prompts with other pictures of the same size have the same ids.
#[test]
fn another_picture_is_not_taken_for_the_one_that_the_cache_holds() {
    let engine = engine(0);
    let left = image::open(demo().join("test_image.jpg")).unwrap();
    let right = left.fliph();
    let messages = [Message::question(1, ARROW)];
    let expected = |picture: &DynamicImage| fresh(&engine, &messages, &[ImageView::decoded(picture)]);
    assert_eq!((&*expected(&left).text, &*expected(&right).text), ("Left.", "Right."));
    assert_eq!(expected(&left).prompt_token_ids, expected(&right).prompt_token_ids);

    let mut session = Session::new(&engine).unwrap();
    for picture in [&left, &right, &right, &left] {
        assert_eq!(
            converse(&mut session, &messages, &[ImageView::decoded(picture)]).unwrap().text,
            expected(picture).text
        );
    }
    // A second picture beside the first one: only the first one's tokens are reused.
    let two = [Message::question(2, ARROW)];
    let ask = |session: &mut Session, a: &DynamicImage, b: &DynamicImage| {
        converse(session, &two, &[ImageView::decoded(a), ImageView::decoded(b)]).unwrap()
    };
    ask(&mut session, &left, &left);
    let other = ask(&mut session, &left, &right);
    assert!((80..150).contains(&other.metrics.cached_tokens), "{:?}", other.metrics);
    assert_eq!(other.text, ask(&mut Session::new(&engine).unwrap(), &left, &right).text);

    // An error leaves all as it was: the conversation, its pictures, and what the cache stands for.
    converse(&mut session, &messages, &[ImageView::decoded(&left)]).unwrap();
    let long = [Message::question(1, &"word ".repeat(5000))];
    assert!(converse(&mut session, &long, &[ImageView::decoded(&right)]).is_err());
    let next = process(&mut session, ARROW, &[]);
    let mut undisturbed = Session::new(&engine).unwrap();
    converse(&mut undisturbed, &messages, &[ImageView::decoded(&left)]).unwrap();
    let expected = process(&mut undisturbed, ARROW, &[]);
    assert_eq!((next.prompt_token_ids, next.text), (expected.prompt_token_ids, expected.text));
}

#[test]
fn a_file_is_encoded_once() {
    let plain = engine(0);
    let keeping = engine(8 << 20);
    let file = file();
    let views = [ImageView::encoded(&file)];
    let messages = [Message::question(1, LIST)];
    let expected = fresh(&plain, &messages, &views);
    assert_eq!(plain.image_cache(), smolvlm::ImageCacheStats::default());
    for hits in 0..3 {
        let answer = fresh(&keeping, &messages, &views);
        assert_eq!((&answer.text, answer.metrics.tiles), (&expected.text, expected.metrics.tiles));
        let stats = keeping.image_cache();
        assert_eq!((stats.hits, stats.misses, stats.pictures), (hits, 1, 1));
        assert!((1000..8 << 20).contains(&stats.bytes));
    }
    // Other tiles are another entry.
    let coarse = Request { longest_edge: Some(96), ..Request::new(LIST, &views) };
    assert_eq!(keeping.ask(&coarse).unwrap().metrics.tiles, 1);
    assert_eq!((keeping.image_cache().hits, keeping.image_cache().misses), (2, 2));
    // A damaged file is none.
    let cut = [ImageView::encoded(&file[..file.len() / 2])];
    assert!(keeping.ask(&Request::new(LIST, &cut)).is_err());
    assert_eq!(keeping.image_cache().pictures, 2);
}

#[test]
fn senseless_conversations_are_named() {
    let engine = engine(0);
    let file = file();
    let view = ImageView::encoded(&file);
    let message = |messages: &[Message], views: &[ImageView<'_>]| {
        let mut session = Session::new(&engine).unwrap();
        converse(&mut session, messages, views).unwrap_err().message().to_owned()
    };
    assert_eq!(message(&[], &[]), "messages: none");
    assert_eq!(message(&[Message::question(1, LIST)], &[]), "pictures: 0 given, the messages have 1");
    assert_eq!(message(&[Message::text(Role::User, "")], &[]), "messages: the last one is empty");
    let shown = Message { role: Role::System, content: vec![Part::Image] };
    assert_eq!(
        message(&[shown, Message::text(Role::User, "Hi")], &[view]),
        "messages: a picture of the system's; the user shows pictures"
    );
    let request = Request { system_prompt: Some("Look."), ..Request::new("", &[]) };
    let error = Session::new(&engine).unwrap().converse(&[], &[], &request, &mut |_| ControlFlow::Continue(()));
    assert_eq!(error.unwrap_err().message(), "system_prompt: given beside messages, which have their own");
}
