//! Pure. Sizes, doc lines and what must not be in any file.

use super::{Finding, Source};

const WORTH_A_LOOK: usize = 300;
const TOO_LONG: usize = 500;

/// Directories that belong to one machine. In parts, or this file would break its own rule.
const LOCAL_PATHS: &[&str] =
    &[concat!("/Use", "rs/"), concat!("/wo", "rk/"), concat!("/root", "/.")];

pub fn is_worth_a_look(source: &Source) -> bool {
    source.is_rust() && (WORTH_A_LOOK + 1..=TOO_LONG).contains(&source.line_count())
}

/// A file of nothing but tests, next to what it tests.
pub fn is_test_module(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

pub fn check(sources: &[Source]) -> Vec<Finding> {
    let written = sources.iter().filter(|source| !is_generated(&source.path));
    written.flat_map(|source| [check_rust(source), check_lines(source)].concat()).collect()
}

fn is_generated(path: &str) -> bool {
    let foreign = ["Cargo.lock", "LICENSE"].contains(&path) || path.ends_with("package-lock.json");
    foreign || path.starts_with("openapi/") || path.contains("/proptest-regressions/")
}

fn check_rust(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !source.is_rust() {
        return findings;
    }
    let lines = source.line_count();
    if lines > TOO_LONG {
        let message = format!("{lines} lines: split it into modules that are each about one thing");
        findings.push(Finding::new(&source.path, message));
    }
    let has_doc = source.text.strip_prefix("//! ").is_some_and(|doc| !doc.starts_with('\n'));
    if !has_doc && !is_test_module(&source.path) {
        let message = "begin with a line `//! ...` that says what this module is about";
        findings.push(Finding::new(&source.path, message));
    }
    let ignore = concat!("#[ign", "ore");
    for (number, line) in source.text.lines().enumerate() {
        if line.trim_start().starts_with(ignore) {
            let message = "an ignored test: make it pass everywhere, or delete it";
            findings.push(Finding::at(source, number, message));
        }
    }
    findings
}

fn check_lines(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let tabs = source.path.ends_with("Makefile") || source.path.ends_with(".mk");
    for (number, line) in source.text.lines().enumerate() {
        let mut find = |message: String| findings.push(Finding::at(source, number, message));
        if line.ends_with([' ', '\t', '\r']) {
            find("white space at the end of the line: remove it".to_owned());
        }
        if line.contains('\t') && !tabs {
            find("a tab: indent with spaces, write \\t in strings".to_owned());
        }
        if let Some(path) = LOCAL_PATHS.iter().find(|path| begins_a_path(line, path)) {
            find(format!("{path} belongs to one machine: find the place at run time"));
        }
    }
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        findings.push(Finding::new(&source.path, "end the last line with a line feed"));
    }
    findings
}

/// `path` at its start, not further inside of another one.
fn begins_a_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || "._-})>*".contains(before))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::check as check_rule;

    fn check(path: &str, text: &str, expect: &[&str]) {
        check_rule(super::check, &[(path, text)], expect);
    }

    #[test]
    fn modules_are_documented_and_short() {
        check("crates/x/src/a.rs", "//! About a.\n", &[]);
        check("crates/x/src/a.rs", "fn a() {}\n", &["begin with a line"]);
        check("crates/x/src/a.rs", "//! \nfn a() {}\n", &["begin with a line", "white space"]);
        check("crates/x/src/tests.rs", "use super::*;\n", &[]);
        let long = format!("//! Long.\n{}", "fn a() {}\n".repeat(500));
        check("crates/x/src/a.rs", &long, &["501 lines: split it"]);
        check("docs/a.md", &long, &[]);
    }

    #[test]
    fn lines_are_clean() {
        check("a.md", "a \nb\tc\n", &["a.md:1: white space", "a.md:2: a tab"]);
        check("Makefile", "a:\n\tb\n", &[]);
        check("a.md", "no end", &["end the last line"]);
        check("openapi/basin-v1.json", "a \n", &[]);
    }

    #[test]
    fn nothing_of_one_machine_and_no_test_that_does_not_run() {
        let here = format!("see {}work{}main\n", "/", "/");
        check("a.md", &here, &["a.md:1: "]);
        check("a.md", &format!("target{here}").replace("see ", ""), &[]);
        let ignored = format!("//! A.\n    #[{}]\n", "ignore = \"slow\"");
        check("crates/x/src/a.rs", &ignored, &["a.rs:2: an ignored test"]);
    }
}
