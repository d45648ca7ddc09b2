//! Pure. Dependencies between the crates point inward (DESIGN, "Layout").

use super::{Finding, Source};

const LIBRARIES: [&str; 7] = [
    "basin-sched",
    "basin-store",
    "basin-qemu",
    "basin-net",
    "basin-storage",
    "basin-vim",
    "basin-blockd",
];

/// Basin's crates that `name` may depend on; None for a crate without a place.
fn allowed(name: &str) -> Option<Vec<&'static str>> {
    let with = |more: &[&'static str]| Some([&LIBRARIES[..], &["basin-model"], more].concat());
    match name {
        "basin-model" | "basin-api" | "basin-guest" | "xtask" => Some(Vec::new()),
        "basin-e2e" => Some(vec!["basin-api"]),
        "basin-node" => with(&[]),
        "basin-controller" => with(&["basin-node", "basin-api"]),
        "basin" => with(&["basin-node", "basin-api", "basin-controller"]),
        library if LIBRARIES.contains(&library) => Some(vec!["basin-model"]),
        _ => None,
    }
}

pub fn check(sources: &[Source]) -> Vec<Finding> {
    let manifests = sources.iter().filter(|source| source.path.ends_with("/Cargo.toml"));
    let mut findings: Vec<Finding> = manifests.flat_map(check_manifest).collect();
    findings.extend(sources.iter().filter(|source| is_cli(source)).flat_map(check_cli));
    findings
}

fn check_manifest(source: &Source) -> Vec<Finding> {
    let manifest: toml::Table = match source.text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::new(&source.path, error.to_string())],
    };
    let name = manifest.get("package").and_then(|package| package.get("name")?.as_str());
    let Some(name) = name else { return Vec::new() };
    let Some(allowed) = allowed(name) else {
        let message = format!("{name} has no place in the layers: give it one in DESIGN and here");
        return vec![Finding::new(&source.path, message)];
    };
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
    let depends = tables.iter().filter_map(|table| manifest.get(*table)?.as_table());
    depends
        .flat_map(|table| table.keys())
        .filter(|other| *other == "basin" || other.starts_with("basin-"))
        .filter(|other| !allowed.contains(&other.as_str()))
        .map(|other| {
            let message = format!(
                "{name} must not depend on {other}: move what both need into basin-model, or \
                 join them in basin-node or basin-controller"
            );
            Finding::new(&source.path, message)
        })
        .collect()
}

fn is_cli(source: &Source) -> bool {
    source.path == "crates/basin/src/cli.rs" || source.path.starts_with("crates/basin/src/cli/")
}

fn check_cli(source: &Source) -> Vec<Finding> {
    let foreign = LIBRARIES.iter().chain(&["basin-model", "basin-node", "basin-controller"]);
    let words: Vec<String> = foreign.map(|name| name.replace('-', "_") + "::").collect();
    let mut findings = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        if let Some(word) = words.iter().find(|word| line.contains(word.as_str())) {
            let message = format!("the CLI knows basin_api only: ask the API instead of {word}");
            findings.push(Finding::at(source, number, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::check as check_rule;

    fn check(name: &str, dependencies: &str, expect: &[&str]) {
        let text = format!("[package]\nname = \"{name}\"\n{dependencies}");
        check_rule(super::check, &[("crates/x/Cargo.toml", &text)], expect);
    }

    #[test]
    fn dependencies_point_inward() {
        check("basin-net", "[dependencies]\nbasin-model.workspace = true\nserde = \"1\"", &[]);
        check(
            "basin-net",
            "[dependencies]\nbasin-storage.workspace = true",
            &["basin-net must not depend on basin-storage"],
        );
        check("basin-node", "[dependencies]\nbasin-net.workspace = true", &[]);
        check(
            "basin-e2e",
            "[dev-dependencies]\nbasin-model.workspace = true\nbasin.workspace = true",
            &["basin-e2e must not depend on basin:", "basin-e2e must not depend on basin-model"],
        );
        check("basin-new", "", &["basin-new has no place in the layers"]);
        check_rule(super::check, &[("Cargo.toml", "[workspace]")], &[]);
    }

    #[test]
    fn the_command_line_asks_the_api() {
        let files = [
            ("crates/basin/src/cli/vm.rs", "use basin_api::Vm;\nuse basin_store::Store;\n"),
            ("crates/basin/src/serve.rs", "use basin_store::Store;\n"),
        ];
        check_rule(super::check, &files, &["cli/vm.rs:2: the CLI knows basin_api only"]);
    }
}
