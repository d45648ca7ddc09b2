//! Pure. Firewalls of other software that stop guests whatever Basin accepts.
//!
//! A packet must pass every base chain of a hook: accepting it in one table does
//! not help when another drops what it does not know (Docker's, ufw's, firewalld's).
//! Basin changes no rules of others; it says what to add.

use serde_json::Value;

use crate::names::Instance;

/// One sentence for each chain in the way; `json` is what `nft -j list chains` says.
pub fn obstacles(instance: &Instance, json: &str) -> Vec<String> {
    let Ok(Value::Object(root)) = serde_json::from_str(json) else { return vec![] };
    let Some(Value::Array(items)) = root.get("nftables") else { return vec![] };
    items.iter().filter_map(|item| obstacle(instance, item.get("chain")?)).collect()
}

fn obstacle(instance: &Instance, chain: &Value) -> Option<String> {
    let text = |key: &str| chain.get(key).and_then(Value::as_str);
    let (family, table, name, hook) =
        (text("family")?, text("table")?, text("name")?, text("hook")?);
    if text("policy")? != "drop" || !matches!(family, "ip" | "inet") {
        return None;
    }
    let bridges = format!("\"{}*\"", instance.bridge_prefix());
    let (what, rules) = match hook {
        "forward" => (
            "guests cannot reach the world",
            vec![
                format!("iifname {bridges} accept"),
                format!("oifname {bridges} ct state established,related accept"),
            ],
        ),
        "input" => {
            ("guests get no address and no names", vec![format!("iifname {bridges} accept")])
        }
        _ => return None,
    };
    let commands: Vec<String> = rules
        .iter()
        .map(|rule| format!("nft 'insert rule {family} {table} {name} {rule}'"))
        .collect();
    Some(format!(
        "{what} if the chain {family} {table} {name} does not accept them: its policy is to drop. \
         If it has no rule for them yet, add: {}",
        commands.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(chain: &str, expect: Option<&str>) {
        let json = format!(r#"{{"nftables":[{{"metainfo":{{}}}},{{"chain":{chain}}}]}}"#);
        let found = obstacles(&Instance::new("a").unwrap(), &json);
        match expect {
            None => assert_eq!(found, Vec::<String>::new(), "{chain}"),
            Some(part) => assert!(found.len() == 1 && found[0].contains(part), "{found:?}"),
        }
    }

    #[test]
    fn a_chain_that_drops_the_unknown_is_named() {
        check(
            r#"{"family":"ip","table":"filter","name":"FORWARD","hook":"forward","policy":"drop"}"#,
            Some(r#"nft 'insert rule ip filter FORWARD iifname "bba-*" accept'"#),
        );
        check(
            r#"{"family":"inet","table":"fw","name":"in","hook":"input","policy":"drop"}"#,
            Some("no address"),
        );
        for fine in [
            r#"{"family":"ip","table":"filter","name":"FORWARD","hook":"forward","policy":"accept"}"#,
            r#"{"family":"ip6","table":"filter","name":"FORWARD","hook":"forward","policy":"drop"}"#,
            r#"{"family":"ip","table":"filter","name":"OUTPUT","hook":"output","policy":"drop"}"#,
            r#"{"family":"ip","table":"filter","name":"DOCKER"}"#,
            r#"17"#,
        ] {
            check(fine, None);
        }
        assert!(obstacles(&Instance::new("a").unwrap(), "not json").is_empty());
    }
}
