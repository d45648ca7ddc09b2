//! Pure. What a cloud-init seed may hold. Checked here once, so that a guest never
//! fails to come up over a key with a line break in it.

use basin_model::vm::CloudInit;

/// The largest user-data or network-config.
pub const MAX_DOCUMENT: usize = 1 << 20;

const KEY_TYPES: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// What cloud-init knows a user-data document by.
const DOCUMENTS: &[&str] = &[
    "#cloud-config",
    "#!",
    "## template: jinja",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "Content-Type:",
    "MIME-Version:",
];

/// Hashes of crypt(5) that a Linux guest may know.
const HASHES: &[&str] = &["1", "2a", "2b", "2y", "5", "6", "7", "y", "gy"];

/// Says what is wrong with it, if anything is.
pub fn check(input: &CloudInit) -> Result<(), String> {
    if let Some(user) = &input.user {
        check_user(user)?;
    }
    for key in &input.ssh_keys {
        check_key(key)?;
    }
    if let Some(hash) = &input.password_hash {
        check_hash(hash)?;
    }
    if let Some(document) = &input.user_data {
        check_user_data(document)?;
    }
    if let Some(document) = &input.network_config {
        check_network(document)?;
    }
    Ok(())
}

fn check_user(user: &str) -> Result<(), String> {
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if user.len() <= 32 && user.starts_with(first) && user.chars().all(rest) {
        return Ok(());
    }
    Err(format!(
        "{user:?} is not a user name: it has 1 to 32 of a-z, 0-9, '_' and '-', \
         and starts with a letter or '_'"
    ))
}

fn check_key(key: &str) -> Result<(), String> {
    let mut words = key.split(' ');
    let (kind, blob) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let shown: String = key.chars().take(40).collect();
    let wrong = |why: String| Err(format!("{shown:?} is not an SSH public key: {why}"));
    if key.chars().any(char::is_control) {
        return wrong("it has a line break or another control character".into());
    }
    if key.len() > 16 << 10 {
        return wrong("it is longer than 16 KiB".into());
    }
    if key.contains("PRIVATE KEY") {
        return Err("that is a private key; give the public one, which ends in .pub".into());
    }
    if !KEY_TYPES.contains(&kind) {
        return wrong(format!("it starts with none of {}", KEY_TYPES.join(", ")));
    }
    // The blob is base64 and says the type again, behind four bytes of length.
    let mut expected = (kind.len() as u32).to_be_bytes().to_vec();
    expected.extend(kind.bytes());
    match decode(blob) {
        Some(bytes) if bytes.len() > expected.len() && bytes.starts_with(&expected) => Ok(()),
        Some(_) => wrong(format!("what follows is not a key of type {kind}")),
        None => wrong("what follows the type is not base64".into()),
    }
}

/// Base64 as keys have it.
fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if text.len() - digits.len() > 2 || !text.len().is_multiple_of(4) || digits.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for c in digits.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

fn check_hash(hash: &str) -> Result<(), String> {
    let parts: Vec<&str> = hash.split('$').collect();
    let known = parts.len() >= 3 && parts[0].is_empty() && HASHES.contains(&parts[1]);
    let allowed = |c: char| c.is_ascii_alphanumeric() || "$./,=".contains(c);
    if known && hash.len() <= 384 && hash.chars().all(allowed) && !parts[2].is_empty() {
        return Ok(());
    }
    Err("the password hash is not in crypt(5) form, such as $6$...; make one: mkpasswd -m yescrypt"
        .into())
}

fn check_length(what: &str, document: &str) -> Result<(), String> {
    if document.len() > MAX_DOCUMENT {
        return Err(format!("the {what} has {} bytes, at most 1 MiB is possible", document.len()));
    }
    Ok(())
}

fn check_user_data(document: &str) -> Result<(), String> {
    check_length("user-data", document)?;
    if !DOCUMENTS.iter().any(|start| starts_with_ignoring_case(document, start)) {
        return Err(format!(
            "cloud-init would ignore the user-data: it starts with none of {}",
            DOCUMENTS.join(", ")
        ));
    }
    if is_cloud_config(document) {
        mapping("user-data", document)?;
    }
    Ok(())
}

fn starts_with_ignoring_case(text: &str, start: &str) -> bool {
    text.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start))
}

/// `#cloud-config`, and not `#cloud-config-archive`, which is a list.
fn is_cloud_config(document: &str) -> bool {
    document
        .lines()
        .next()
        .is_some_and(|line| line.trim_end().eq_ignore_ascii_case("#cloud-config"))
}

fn check_network(document: &str) -> Result<(), String> {
    check_length("network-config", document)?;
    let Some(map) = mapping("network-config", document)? else {
        return Err("the network-config is empty".into());
    };
    let inner = map.get("network").and_then(|n| n.as_mapping()).unwrap_or(&map);
    match inner.get("version").and_then(|v| v.as_u64()) {
        Some(1 | 2) => Ok(()),
        _ => Err("the network-config does not say 'version: 2'".into()),
    }
}

/// The document as a mapping; `None` when there is nothing in it.
fn mapping(what: &str, document: &str) -> Result<Option<serde_yaml_ng::Mapping>, String> {
    match serde_yaml_ng::from_str(document) {
        Ok(serde_yaml_ng::Value::Mapping(map)) => Ok(Some(map)),
        Ok(serde_yaml_ng::Value::Null) => Ok(None),
        Ok(_) => Err(format!("the {what} is YAML, but not a mapping of names to values")),
        Err(e) => Err(format!("the {what} is not YAML: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2ZbPK3tFqv0mS7mOwJ3DnWq1m0JkqZVbIrCkPz5xQd me@here";

    #[test]
    fn keys_are_one_line_of_a_known_type() {
        assert_eq!(check_key(KEY), Ok(()));
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 ????",
            "ssh-dss AAAAB3NzaC1kc3M=",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIJ2ZbPK3tFqv0mS7mOwJ3DnWq1m0JkqZVbIrCkPz5xQd",
            &format!("{KEY}\nssh-rsa AAAA"),
            &format!("command=\"x\" {KEY}"),
        ] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
        assert!(check_key("-----BEGIN OPENSSH PRIVATE KEY-----").unwrap_err().contains("private"));
    }

    #[test]
    fn users_and_hashes_are_what_the_guest_takes() {
        for good in ["basin", "_x", "a-1"] {
            assert_eq!(check_user(good), Ok(()));
        }
        for bad in ["", "1a", "-a", "Root", "a b", "a:b", "a\nb", "ü", &"a".repeat(33)] {
            assert!(check_user(bad).is_err(), "{bad}");
        }
        for good in ["$6$salt$abc./", "$y$j9T$salt$hash", "$2b$12$abcdefghij"] {
            assert_eq!(check_hash(good), Ok(()));
        }
        for bad in ["", "secret", "$6$", "$9$a$b", "$6$a$b:c", "$6$a$b\nroot::0:0"] {
            assert!(check_hash(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn documents_are_such_that_cloud_init_reads_them() {
        let check = |d: &str| check_user_data(d).is_ok();
        for good in [
            "#cloud-config\npackages: [vim]\n",
            "#cloud-config\n",
            "#cloud-config\r\na: 1\r\n",
            "#!/bin/sh\necho",
            "## template: jinja\n#cloud-config\n{% if a %}",
            "Content-Type: multipart/mixed; boundary=x\n",
            "#cloud-config-archive\n- type: text/x-shellscript\n",
        ] {
            assert!(check(good), "{good}");
        }
        for bad in [
            "",
            "packages: [vim]",
            " #cloud-config\n",
            "#cloud-config\na: [",
            "#cloud-config\n- a\n",
        ] {
            assert!(!check(bad), "{bad}");
        }
        assert!(!check(&format!("#!{}", "x".repeat(MAX_DOCUMENT))));
        assert_eq!(check_network("version: 2\nethernets: {}\n"), Ok(()));
        assert_eq!(check_network("network:\n  version: 2\n"), Ok(()));
        for bad in ["", "a", "ethernets: {}", "version: 3"] {
            assert!(check_network(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = (check_user(&text), check_key(&text), check_hash(&text));
            let _ = (check_user_data(&text), check_network(&text));
        }
    }
}
