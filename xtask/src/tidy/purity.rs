//! Pure. Pure code has no clock, no randomness, no async and no effects (DESIGN D6).

use super::{Finding, Source};

/// What pure code must not mention, and what to do instead.
const IMPURE: &[(&str, &str)] = &[
    ("std::fs", "take the content as an argument; read it at the rim"),
    ("std::net::Tcp", "take what was received as an argument"),
    ("std::net::Udp", "take what was received as an argument"),
    ("std::os::unix::net", "take what was received as an argument"),
    ("std::process", "return what is to be run; run it at the rim"),
    ("std::env", "take the value as an argument"),
    ("std::thread", "leave threads to the caller"),
    ("SystemTime::now", "take `now` as an argument"),
    ("Timestamp::now", "take `now` as an argument"),
    ("Zoned::now", "take `now` as an argument"),
    ("Instant::now", "take `now` as an argument"),
    ("rand::", "take a seed or the value itself as an argument"),
    ("::new_v4", "take the id as an argument"),
    ("::now_v7", "take the id as an argument"),
    ("tokio::", "return a plan; carry it out in an async module"),
    ("async fn", "return a plan; carry it out in an async module"),
    (".await", "return a plan; carry it out in an async module"),
];

const PURE_CRATES: [&str; 3] = ["crates/basin-model/", "crates/basin-sched/", "crates/basin-api/"];

pub fn check(sources: &[Source]) -> Vec<Finding> {
    sources.iter().filter(|source| must_be_pure(source)).flat_map(check_source).collect()
}

fn must_be_pure(source: &Source) -> bool {
    if !source.is_rust() || super::text::is_test_module(&source.path) {
        return false;
    }
    let client = source.path.starts_with("crates/basin-api/src/client");
    let whole_crate =
        PURE_CRATES.iter().any(|root| source.path.starts_with(&format!("{root}src/")));
    source.text.starts_with("//! Pure.") || (whole_crate && !client)
}

fn check_source(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        // Tests stand at the end, and may do as they like.
        if line.trim() == "#[cfg(test)]" {
            break;
        }
        let code = line.split("//").next().unwrap_or(line);
        for (word, instead) in IMPURE {
            if mentions(code, word) {
                findings.push(Finding::at(
                    source,
                    number,
                    format!("{word} in pure code: {instead}"),
                ));
            }
        }
    }
    findings
}

/// `word` as a whole: `rand::` is not in `operand::`, nor is anything in a string.
fn mentions(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let quoted = code[..at].matches('"').count() % 2 == 1;
        let whole = !word.starts_with(char::is_alphabetic)
            || !before.is_some_and(|before| before.is_alphanumeric() || before == '_');
        whole && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::check as check_rule;

    fn check(path: &str, text: &str, expect: &[&str]) {
        check_rule(super::check, &[(path, text)], expect);
    }

    #[test]
    fn pure_code_has_no_effects() {
        let file = "crates/basin-net/src/plan.rs";
        check(
            file,
            "//! Pure. A plan.\nlet x = std::fs::read(p);",
            &["plan.rs:2: std::fs in pure"],
        );
        check(file, "//! Pure. A plan.\nlet t = Instant::now();", &["take `now` as an argument"]);
        check(file, "//! Applies a plan.\nlet x = std::fs::read(p);", &[]);
        check("crates/basin-model/src/vm.rs", "//! VMs.\nuse rand::Rng;", &["rand::"]);
        check("crates/basin-api/src/client/http.rs", "//! The client.\nuse tokio::net;", &[]);
    }

    #[test]
    fn words_of_pure_code_that_only_look_impure() {
        let file = "crates/basin-sched/src/lib.rs";
        check(file, "//! Pure.\n// never std::fs\nlet x = operand::new();\n", &[]);
        check(file, "//! Pure.\nlet x = \"std::fs\";\n", &[]);
        check(file, "//! Pure.\nfn f() {}\n#[cfg(test)]\nmod tests {\nuse std::fs;\n}\n", &[]);
        check("crates/basin-model/src/tests.rs", "use std::fs;", &[]);
    }
}
