//! The files of `src/` stand on floors, and import from the floors below them: `docs/architecture.md` lists them, the
//! sources are held against it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

const LIST: &str = "docs/architecture.md";

#[test]
fn no_file_imports_from_a_floor_above_it() {
    let sources = sources();
    let floors = Floors::read(&read(LIST));
    floors.check_files(&sources);
    let faults = floors.faults(&imports(&sources));
    assert!(faults.is_empty(), "{} imports that {LIST} does not allow:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let imports = imports(&sources());
    let circles = circles(&imports);
    let told: Vec<_> = circles.iter().map(|files| format!("{} files: {}", files.len(), files.join(" "))).collect();
    assert!(told.is_empty(), "{} circles:\n{}", told.len(), told.join("\n"));
}

/// What this file reads, in a small house: re-exports lead to where a thing is defined, tests may import anything.
#[test]
fn imports_are_found_wherever_they_are_written() {
    let house =
        |files: &[(&str, &str)]| files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect();
    let good: Sources = house(&[
        ("src/lib.rs", "mod low; mod high; mod shared; pub use crate::high::High;"),
        ("src/low.rs", "pub struct Low; #[cfg(test)] mod tests { use crate::high::High; }"),
        ("src/shared/mod.rs", "mod part; pub use part::Part; macro_rules! made { () => {} }"),
        ("src/shared/part.rs", "pub struct Part; /* crate::high::High */ const TEXT: &str = \"crate::high::High\";"),
        ("src/high.rs", "use crate::low::{self, Low as L}; pub struct High(crate::shared::Part);"),
    ]);
    let found = imports(&good);
    let of = |file: &str| found[file].iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(of("src/high.rs"), ["src/low.rs", "src/shared/part.rs"]);
    assert_eq!(of("src/lib.rs"), ["src/high.rs"]);
    assert_eq!((of("src/low.rs"), of("src/shared/part.rs")), (vec![], vec![]));
    assert_eq!(circles(&found), [[""; 0]; 0]);
    let floors = Floors::read("<!-- floors -->\n| 0 | `low.rs` `shared` |\n| 1 | `high.rs` |\n| 2 | `lib.rs` |");
    floors.check_files(&good);
    assert_eq!(floors.faults(&found), [""; 0]);

    for back in [
        "use crate::high::High;",
        "pub(crate) use super::{high::High as Other};",
        "use crate::High;",
        "use super::high; fn f() { high::g() }",
        "fn f() { let x = (crate::high::g(), 1); }",
        "fn f() { format!(\"{}\", super::high::g()) }",
        "macro_rules! m { () => { $crate::high::g() } }",
    ] {
        let mut bad = good.clone();
        bad.insert("src/low.rs".into(), format!("pub struct Low; {back}"));
        let found = imports(&bad);
        assert_eq!(floors.faults(&found), ["src/low.rs (floor 0) imports src/high.rs (floor 1)"], "{back}");
        assert_eq!(circles(&found), [["src/high.rs", "src/low.rs"]], "{back}");
    }
    let mut bad = good;
    bad.insert("src/shared/part.rs".into(), "pub struct Part; made!();".into());
    assert_eq!(circles(&imports(&bad)), [["src/shared/mod.rs", "src/shared/part.rs"]]);
}

/// Texts by paths.
type Sources = BTreeMap<String, String>;

/// What a file imports from, by files.
type Imports = BTreeMap<String, BTreeSet<String>>;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn sources() -> Sources {
    let mut sources = Sources::new();
    let mut folders = vec!["src".to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in Path::new(env!("CARGO_MANIFEST_DIR")).join(&folder).read_dir().unwrap() {
            let entry = entry.unwrap();
            let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if path.ends_with(".rs") {
                let text = read(&path);
                sources.insert(path, text);
            }
        }
    }
    sources
}

/// The list: an entry is a file, or a name for `name.rs` and all of `name/` that no longer entry names.
struct Floors(HashMap<String, usize>);

impl Floors {
    fn read(page: &str) -> Self {
        let (_, list) = page.split_once("<!-- floors -->").unwrap_or_else(|| panic!("{LIST}: no list of floors"));
        let rows = list.split("<!-- end of floors -->").next().unwrap().lines();
        let mut floors = HashMap::new();
        for cells in rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>()) {
            let [_, floor, names, ..] = &cells[..] else { continue };
            let Ok(floor) = floor.parse() else { continue };
            for name in names.split('`').skip(1).step_by(2) {
                let before = floors.insert(format!("src/{name}"), floor);
                assert!(before.is_none(), "{LIST}: `{name}` stands there twice");
            }
        }
        Self(floors)
    }

    /// The entry that a file belongs to, and its floor.
    fn of(&self, file: &str) -> Option<(&str, usize)> {
        let holds = |entry: &str| {
            file.strip_prefix(entry).is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
        };
        let entries = self.0.iter().filter(|(entry, _)| holds(entry));
        entries.max_by_key(|(entry, _)| entry.len()).map(|(entry, &floor)| (entry.as_str(), floor))
    }

    /// Every file has an entry, every entry a file.
    fn check_files(&self, sources: &Sources) {
        let of = |file: &String| self.of(file).unwrap_or_else(|| panic!("{file}: stands on no floor of {LIST}")).0;
        let used: BTreeSet<_> = sources.keys().map(of).collect();
        let unused: Vec<_> = self.0.keys().filter(|entry| !used.contains(entry.as_str())).collect();
        assert!(unused.is_empty(), "{LIST}: no such files: {unused:?}");
    }

    /// Imports but from a lower floor or within an entry.
    fn faults(&self, imports: &Imports) -> Vec<String> {
        let pairs = imports.iter().flat_map(|(file, from)| from.iter().map(move |from| (file, from)));
        pairs
            .filter_map(|(file, from)| {
                let ((entry, floor), (from_entry, from_floor)) = (self.of(file)?, self.of(from)?);
                (entry != from_entry && from_floor >= floor)
                    .then(|| format!("{file} (floor {floor}) imports {from} (floor {from_floor})"))
            })
            .collect()
    }
}

/// Groups of files each of which leads to all others of its group.
fn circles(imports: &Imports) -> Vec<Vec<&str>> {
    let reach = |from: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            for next in imports.get(file).into_iter().flatten() {
                if seen.insert(next.as_str()) {
                    open.push(next);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<_, _> = imports.keys().map(|file| (file.as_str(), reach(file))).collect();
    let mut groups = BTreeSet::new();
    for (file, reaches) in reached.iter().filter(|(file, reaches)| reaches.contains(*file)) {
        groups.insert(reaches.iter().copied().filter(|other| reached[other].contains(file)).collect::<Vec<_>>());
    }
    groups.into_iter().collect()
}

/// Every import of every file, through re-exports to the file that defines what is imported.
fn imports(sources: &Sources) -> Imports {
    let mut crate_ = Crate::default();
    crate_.add_file(sources, "src/lib.rs", "src", None);
    let mut imports: Imports = crate_.modules.iter().map(|module| (module.file.clone(), BTreeSet::new())).collect();
    let mut add = |module: usize, from: usize| {
        let (file, from) = (&crate_.modules[module].file, &crate_.modules[from].file);
        if file != from {
            imports.get_mut(file).unwrap().insert(from.clone());
        }
    };
    for (module, path) in &crate_.paths {
        if let Some(Found::Item(from)) = crate_.resolve(*module, path) {
            add(*module, from);
        }
    }
    for (module, name) in &crate_.calls {
        // The textual scope of macros.
        let above = std::iter::successors(Some(*module), |&module| crate_.modules[module].parent);
        if let Some(from) = above.into_iter().find(|&above| crate_.modules[above].macros.contains(name)) {
            add(*module, from);
        }
    }
    imports
}

#[derive(Default)]
struct Crate {
    /// The first is the root.
    modules: Vec<Module>,
    /// Every path of two names or more, by the module in which it is written.
    paths: Vec<(usize, Vec<String>)>,
    /// Macros that are called by their name alone, likewise.
    calls: Vec<(usize, String)>,
}

#[derive(Default)]
struct Module {
    file: String,
    parent: Option<usize>,
    children: HashMap<String, usize>,
    macros: BTreeSet<String>,
    /// What `use` gives names to.
    names: HashMap<String, Vec<String>>,
}

enum Found {
    /// The module that defines it.
    Item(usize),
    Module(usize),
}

impl Crate {
    /// `folder`: where the files of its children are.
    fn add_file(&mut self, sources: &Sources, file: &str, folder: &str, parent: Option<usize>) -> usize {
        let text = sources.get(file).unwrap_or_else(|| panic!("{file}: not there"));
        let tokens = text.parse().unwrap_or_else(|e| panic!("{file}: {e}"));
        self.add(sources, file, folder, parent, tokens)
    }

    fn add(
        &mut self,
        sources: &Sources,
        file: &str,
        folder: &str,
        parent: Option<usize>,
        tokens: TokenStream,
    ) -> usize {
        let module = self.modules.len();
        self.modules.push(Module { file: file.into(), parent, ..Module::default() });
        self.walk(sources, module, folder, tokens);
        module
    }

    fn walk(&mut self, sources: &Sources, module: usize, folder: &str, tokens: TokenStream) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            let rest = &tokens[at..];
            at += match (word(rest, 0).as_deref(), rest) {
                (None, [TokenTree::Punct(hash), TokenTree::Group(attribute), ..]) if hash.as_char() == '#' => {
                    2 + if is_test(attribute.stream()) { item(&rest[2..]) } else { 0 }
                }
                (None, [TokenTree::Group(group), ..]) => {
                    self.walk(sources, module, folder, group.stream());
                    1
                }
                (None, _) if separator(rest, 0) => 2 + word(rest, 2).map_or(0, |_| 1),
                (Some("pub"), [_, TokenTree::Group(to), ..]) if to.delimiter() == Delimiter::Parenthesis => 2,
                (Some("use"), _) => {
                    let end = item(rest);
                    self.take_use(module, Vec::new(), &rest[1..end]);
                    end
                }
                (Some("mod"), [_, TokenTree::Ident(name), body, ..]) => {
                    let (name, below) = (name.to_string(), format!("{folder}/{name}"));
                    let child = match body {
                        TokenTree::Group(body) => {
                            let file = self.modules[module].file.clone();
                            self.add(sources, &file, &below, Some(module), body.stream())
                        }
                        _ => {
                            let files = [format!("{below}.rs"), format!("{below}/mod.rs")];
                            let file = files.iter().find(|file| sources.contains_key(*file));
                            self.add_file(sources, file.unwrap_or(&files[0]), &below, Some(module))
                        }
                    };
                    self.modules[module].children.insert(name, child);
                    3
                }
                (Some("macro_rules"), _) => {
                    let name = word(rest, 2).expect("a macro has a name");
                    self.modules[module].macros.insert(name);
                    3
                }
                (Some(first), _) => {
                    let mut path = vec![first.to_owned()];
                    while separator(rest, 3 * path.len() - 2)
                        && let Some(next) = word(rest, 3 * path.len())
                    {
                        path.push(next);
                    }
                    let length = 3 * path.len() - 2;
                    if path.len() > 1 {
                        self.paths.push((module, path));
                    } else if matches!(rest.get(1), Some(TokenTree::Punct(mark)) if mark.as_char() == '!') {
                        self.calls.push((module, path.remove(0)));
                    }
                    length
                }
                _ => 1,
            };
        }
    }

    /// What stands between `use` and `;`, or a part of it, below `prefix`.
    fn take_use(&mut self, module: usize, prefix: Vec<String>, tokens: &[TokenTree]) {
        let mut path = prefix;
        let mut at = 0;
        loop {
            match tokens.get(at) {
                Some(TokenTree::Group(group)) => {
                    let all: Vec<_> = group.stream().into_iter().collect();
                    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(p) if p.as_char() == ',');
                    for part in all.split(is_comma).filter(|part| !part.is_empty()) {
                        self.take_use(module, path.clone(), part);
                    }
                    return;
                }
                Some(TokenTree::Ident(name)) if name == "self" && !path.is_empty() => {}
                Some(TokenTree::Ident(name)) => path.push(name.to_string()),
                _ if separator(tokens, at) => at += 1,
                // A star: of everything that the module has.
                Some(TokenTree::Punct(star)) if star.as_char() == '*' => path.push("*".into()),
                _ => break,
            }
            at += 1;
            if word(tokens, at).as_deref() == Some("as") {
                break;
            }
        }
        let name = word(tokens, at + 1).unwrap_or_else(|| path.last().cloned().unwrap_or_default());
        self.modules[module].names.insert(name, path.clone());
        self.paths.push((module, path));
    }

    fn resolve(&self, from: usize, path: &[String]) -> Option<Found> {
        let mut module = from;
        let mut names = path.iter().enumerate();
        for (i, name) in names.by_ref() {
            let here = &self.modules[module];
            let start = i == 0 || path[..i].iter().all(|before| before == "super" || before == "self");
            match name.as_str() {
                "crate" if i == 0 => module = 0,
                "self" if start => {}
                "super" if start => module = here.parent?,
                name if here.children.contains_key(name) => module = here.children[name],
                name if here.macros.contains(name) => return Some(Found::Item(module)),
                name => match here.names.get(name) {
                    // The name of another crate.
                    Some(target) if !self.is_here(module, target) => return None,
                    Some(target) => match self.resolve(module, target)? {
                        Found::Module(found) => module = found,
                        item => return Some(item),
                    },
                    // Another crate's, or of this file.
                    None if i == 0 => return None,
                    None => return Some(Found::Item(module)),
                },
            }
        }
        Some(Found::Module(module))
    }

    /// Whether what a `use` names is of this crate.
    fn is_here(&self, module: usize, target: &[String]) -> bool {
        let (here, first) = (&self.modules[module], &target[0]);
        let renamed = || here.names.get(first).is_some_and(|other| other != target && self.is_here(module, other));
        ["crate", "self", "super"].contains(&first.as_str()) || here.children.contains_key(first) || renamed()
    }
}

fn word(tokens: &[TokenTree], at: usize) -> Option<String> {
    match tokens.get(at) {
        Some(TokenTree::Ident(word)) => Some(word.to_string()),
        _ => None,
    }
}

/// `::`.
fn separator(tokens: &[TokenTree], at: usize) -> bool {
    let colon = |at| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':');
    colon(at) && colon(at + 1)
}

/// `cfg(test)`, or with something else that is needed beside it.
fn is_test(attribute: TokenStream) -> bool {
    let text: String = attribute.to_string().split_whitespace().collect();
    text.starts_with("cfg(test") || text.starts_with("cfg(all(test")
}

/// Tokens up to an item's end: its `;`, or its body.
fn item(tokens: &[TokenTree]) -> usize {
    let is_use = tokens.iter().take(3).any(|token| matches!(token, TokenTree::Ident(word) if word == "use"));
    let ends = |token: &TokenTree| match token {
        TokenTree::Punct(end) => end.as_char() == ';',
        TokenTree::Group(body) => body.delimiter() == Delimiter::Brace && !is_use,
        _ => false,
    };
    tokens.iter().position(ends).map_or(tokens.len(), |end| end + 1)
}
