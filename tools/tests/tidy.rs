//! House rules that no lint knows: file length, words that are ours, tests that are skipped, and
//! traces of a machine. Reads the sources as text.

use std::path::{Path, PathBuf};

/// Greatest length of a source file without its tests, in lines.
const FILE_LINES_MAX: usize = 600;

/// Tests run in their package's directory. The path is not taken at build time: a build cache outlives the clone
/// that filled it.
fn root() -> PathBuf {
    PathBuf::from("..")
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(directory).expect("the source tree is readable");
    for entry in entries {
        let path = entry.expect("the source tree is readable").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            if name != "target" && name != ".git" {
                collect(&path, files);
            }
        } else {
            files.push(path);
        }
    }
}

fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    collect(&root(), &mut files);
    let sources: Vec<(String, String)> = files
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("sources are UTF-8");
            let name = path
                .strip_prefix(root())
                .unwrap_or(&path)
                .display()
                .to_string();
            (name, text)
        })
        .collect();
    assert!(sources.len() > 20, "the walk found the sources");
    sources
}

#[test]
fn a_file_holds_one_thought() {
    for (name, text) in sources() {
        let code = text
            .split("\n#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or(&text);
        let lines = code.lines().count();
        let bound = if name.contains("/tests/") {
            2 * FILE_LINES_MAX
        } else {
            FILE_LINES_MAX
        };
        assert!(
            lines <= bound,
            "{name} has {lines} lines, {bound} are the most"
        );
    }
}

#[test]
fn no_test_is_skipped() {
    // Spelt in two pieces, so that this file does not find itself.
    let attribute = concat!("#[", "ignore");
    for (name, text) in sources() {
        assert!(!text.contains(attribute), "{name} skips a test");
    }
}

#[test]
fn every_module_says_what_it_is() {
    for (name, text) in sources() {
        let first = text.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("//!"),
            "{name} has no module documentation in its first line"
        );
    }
}

#[test]
fn modules_are_named_by_what_they_are() {
    const FORBIDDEN: [&str; 9] = [
        "manager", "helper", "helpers", "util", "utils", "common", "misc", "types_v2", "data",
    ];
    for (name, _) in sources() {
        let stem = Path::new(&name)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        assert!(
            !FORBIDDEN.contains(&stem.as_str()),
            "{name}: the name says nothing"
        );
    }
}

/// The one crate with unsafe code: it takes the place of two functions of the C library, and only the simulation links it
/// (`dependencies.rs`).
const UNCHECKED: &str = "jepsen/fate/Cargo.toml";

#[test]
fn every_crate_takes_the_workspace_lints() {
    let mut files = Vec::new();
    collect(&root(), &mut files);
    for path in files.iter().filter(|path| path.ends_with("Cargo.toml")) {
        let text = std::fs::read_to_string(path).expect("manifests are UTF-8");
        if path.ends_with(UNCHECKED) {
            assert!(text.contains("unsafe_code = \"deny\""), "{UNCHECKED}");
        } else if text.contains("[package]") {
            assert!(
                text.contains("[lints]\nworkspace = true"),
                "{}",
                path.display()
            );
        }
    }
}
