//! Pure. Decision records have a number of their own and a title.

use std::collections::BTreeMap;

use super::{Finding, Source};

const FOLDER: &str = "docs/decisions/";

pub fn check(sources: &[Source]) -> Vec<Finding> {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    let mut findings = Vec::new();
    for source in sources {
        let Some(name) = source.path.strip_prefix(FOLDER) else { continue };
        let number = name.split_once('-').map_or("", |(number, _)| number);
        let numbered = number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit());
        if !numbered || !name.ends_with(".md") {
            findings.push(Finding::new(&source.path, "call it NNNN-title.md"));
            continue;
        }
        if let Some(other) = seen.insert(number, name) {
            let message = format!("{other} has this number too: take the next free one");
            findings.push(Finding::new(&source.path, message));
        }
        if !source.text.starts_with("# ") {
            findings.push(Finding::new(&source.path, "begin with a line `# Title`"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::check as check_rule;

    #[test]
    fn numbers_are_unique() {
        let files = [
            ("docs/decisions/0001-a.md", "# A\n"),
            ("docs/decisions/0001-b.md", "# B\n"),
            ("docs/decisions/0002-c.md", "C\n"),
            ("docs/decisions/three.md", "# Three\n"),
            ("docs/other.md", "x\n"),
        ];
        let expect = [
            "0001-b.md: 0001-a.md has this number too",
            "0002-c.md: begin with a line",
            "three.md: call it NNNN-title.md",
        ];
        check_rule(super::check, &files, &expect);
    }
}
