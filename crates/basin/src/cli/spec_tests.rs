//! Pure. Tests of the command line's small languages.

use serde_json::{Value, json};

use super::*;

#[test]
fn disks() {
    let check = |text: &str, expect: Value| {
        let disk = parse_disk(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(serde_json::to_value(disk).expect("JSON"), expect, "{text}");
    };
    check(
        "size=1GiB",
        json!({"disk": {"is": "new", "source": {"from": "blank", "size_bytes": 1 << 30}}, "read_only": false}),
    );
    check(
        "size=1G,format=qcow2,datastore=fast,serial=a1",
        json!({"disk": {"is": "new", "source": {"from": "blank", "size_bytes": 1 << 30},
               "format": "qcow2", "datastore": "fast"}, "read_only": false, "serial": "a1"}),
    );
    check(
        "ro,volume=data",
        json!({"disk": {"is": "existing", "volume": "data"}, "read_only": true}),
    );
    check(
        "image=debian-12",
        json!({"disk": {"is": "new", "source": {"from": "image", "image": "debian-12", "clone": "linked"}}, "read_only": false}),
    );
    check(
        "from=gold,clone=full,size=2K",
        json!({"disk": {"is": "new", "source": {"from": "volume", "volume": "gold", "clone": "full", "size_bytes": 2048}}, "read_only": false}),
    );
}

#[test]
fn disks_refused() {
    let check = |text: &str, expect: &str| {
        let error = parse_disk(text).expect_err(text);
        assert!(error.contains(expect), "{text}: {error}");
    };
    check("", "says nothing");
    check("ro", "say what it is");
    check("size=", "says nothing");
    check("size", "needs a value");
    check("size=many", "not a size");
    check("size=1G,size=2G", "twice");
    check("size=1G,clone=full", "something to clone");
    check("size=1G,format=vmdk", "raw or qcow2");
    check("size=1G,colour=red", "'colour'");
    check("volume=a,image=b", "exclude");
    check("volume=a,size=1G", "'size'");
    check("volume=a,ro=yes", "takes no value");
}

#[test]
fn interfaces() {
    let check = |text: &str, expect: Value| {
        let nic = parse_nic(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(serde_json::to_value(nic).expect("JSON"), expect);
    };
    check("lab", json!({"network": "lab"}));
    check(
        "lab,address=10.0.0.5,mac=52:54:00:00:00:01",
        json!({"network": "lab", "mac": "52:54:00:00:00:01", "address": "10.0.0.5"}),
    );
    for bad in ["", "mac=1", ",mac=1", "lab,", "lab,mac", "lab,speed=1", "lab,mac=1,mac=2"] {
        assert!(parse_nic(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn labels() {
    let check = |text: &str, key: &str, value: Option<&str>| {
        let expect = LabelChange(key.to_owned(), value.map(str::to_owned));
        assert_eq!(parse_label_change(text), Ok(expect));
    };
    check("tier=gold", "tier", Some("gold"));
    check("tier=", "tier", Some(""));
    check("tier=a=b-", "tier", Some("a=b-"));
    check("tier-", "tier", None);
    for bad in ["", "-", "tier", "=x", "=x-"] {
        assert!(parse_label_change(bad).is_err(), "{bad:?}");
    }
    assert_eq!(parse_label("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
    assert!(parse_label("a").is_err());
}

#[test]
fn keys() {
    assert!(is_ssh_key("ssh-ed25519 AAAA me@here"));
    assert!(is_ssh_key("sk-ssh-ed25519@openssh.com AAAA"));
    assert!(!is_ssh_key("/keys/id.pub"));
    assert!(!is_ssh_key("ssh-keys.pub"));
    let file = "# mine\nssh-ed25519 AAAA me\n\nssh-rsa BBBB\n";
    assert_eq!(ssh_keys(file).expect("keys"), ["ssh-ed25519 AAAA me", "ssh-rsa BBBB"]);
    for bad in ["", "# none\n", "hello\n", "-----BEGIN OPENSSH PRIVATE KEY-----\n"] {
        assert!(ssh_keys(bad).is_err(), "{bad:?}");
    }
}
