//! Pure. The NoCloud seed: what cloud-init in a guest finds on a small CD.

mod check;
mod iso;

use std::collections::BTreeMap;

use basin_model::vm::CloudInit;
use basin_model::{MacAddr, Name};
use serde::Serialize;

use crate::datastore::StorageError;

/// How cloud-init finds its seed.
const LABEL: &str = "cidata";

/// What a seed is made of.
#[derive(Debug, Clone, Copy)]
pub struct SeedInput<'a> {
    /// Changes when cloud-init should take the guest for a new one: the VM's id.
    pub instance_id: &'a str,
    pub hostname: &'a Name,
    pub cloud_init: &'a CloudInit,
    /// The VM's interfaces.
    pub macs: &'a [MacAddr],
}

/// Says what is wrong with a cloud-init configuration, if anything is.
pub fn check_cloud_init(cloud_init: &CloudInit) -> Result<(), StorageError> {
    check::check(cloud_init).map_err(|why| StorageError::Invalid(format!("cloud-init: {why}")))
}

/// The seed as an ISO 9660 image. Equal input gives equal bytes.
pub fn build_seed(input: &SeedInput<'_>) -> Result<Vec<u8>, StorageError> {
    check_cloud_init(input.cloud_init)?;
    let documents = documents(input)?;
    let files: Vec<_> = documents
        .iter()
        .map(|(name, text)| iso::IsoFile { name, content: text.as_bytes() })
        .collect();
    iso::build(LABEL, &files)
        .ok_or_else(|| StorageError::Invalid("the cloud-init seed is too large".into()))
}

/// The documents by their names.
fn documents(input: &SeedInput<'_>) -> Result<[(&'static str, String); 3], StorageError> {
    let given = input.cloud_init;
    let user_data = match &given.user_data {
        Some(document) => document.clone(),
        None => format!("#cloud-config\n{}", yaml(&UserData::new(given))?),
    };
    let network = match &given.network_config {
        Some(document) => document.clone(),
        None => yaml(&NetworkConfig::dhcp(input.macs))?,
    };
    let meta = MetaData { instance_id: input.instance_id, local_hostname: input.hostname.as_str() };
    Ok([("meta-data", yaml(&meta)?), ("user-data", user_data), ("network-config", network)])
}

fn yaml(value: &impl Serialize) -> Result<String, StorageError> {
    serde_yaml_ng::to_string(value)
        .map_err(|e| StorageError::Invalid(format!("the cloud-init seed cannot be written: {e}")))
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct MetaData<'a> {
    instance_id: &'a str,
    local_hostname: &'a str,
}

/// Alters the image's default user instead of adding one, so that the image's
/// choice of shell and groups stays.
#[derive(Serialize)]
struct UserData<'a> {
    user: User<'a>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ssh_authorized_keys: &'a [String],
    /// A password is for the console.
    ssh_pwauth: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    disable_root: Option<bool>,
}

#[derive(Serialize)]
struct User<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sudo: Option<&'static str>,
    lock_passwd: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hashed_passwd: Option<&'a str>,
}

impl<'a> UserData<'a> {
    fn new(given: &'a CloudInit) -> UserData<'a> {
        let name = given.user.as_deref();
        let root = name == Some("root");
        UserData {
            user: User {
                name,
                sudo: (name.is_some() && !root).then_some("ALL=(ALL) NOPASSWD:ALL"),
                lock_passwd: given.password_hash.is_none(),
                hashed_passwd: given.password_hash.as_deref(),
            },
            ssh_authorized_keys: &given.ssh_keys,
            ssh_pwauth: false,
            // Else cloud-init puts a refusal before root's keys.
            disable_root: root.then_some(false),
        }
    }
}

#[derive(Serialize)]
struct NetworkConfig {
    version: u8,
    ethernets: BTreeMap<String, Ethernet>,
}

#[derive(Serialize)]
struct Ethernet {
    #[serde(rename = "match")]
    by: Match,
    dhcp4: bool,
}

#[derive(Serialize)]
struct Match {
    macaddress: String,
}

impl NetworkConfig {
    fn dhcp(macs: &[MacAddr]) -> NetworkConfig {
        let ethernets = macs.iter().enumerate().map(|(n, mac)| {
            (format!("nic{n}"), Ethernet { by: Match { macaddress: mac.to_string() }, dhcp4: true })
        });
        NetworkConfig { version: 2, ethernets: ethernets.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_yaml_ng::Value;

    fn rendered(cloud_init: &CloudInit, macs: &[MacAddr]) -> [Value; 3] {
        let hostname: Name = "web-1".parse().unwrap();
        let input = SeedInput { instance_id: "i-1", hostname: &hostname, cloud_init, macs };
        documents(&input).unwrap().map(|(_, text)| serde_yaml_ng::from_str(&text).unwrap())
    }

    #[test]
    fn the_default_user_gets_the_keys_and_no_password() {
        let [meta, user, network] = rendered(
            &CloudInit { ssh_keys: vec!["ssh-rsa x".into()], ..CloudInit::default() },
            &[MacAddr::from_random([1, 2, 3])],
        );
        assert_eq!(meta["local-hostname"], "web-1");
        assert_eq!(meta["instance-id"], "i-1");
        assert_eq!(user["ssh_authorized_keys"][0], "ssh-rsa x");
        assert_eq!(user["user"]["lock_passwd"], true);
        assert_eq!(user["user"].get("name"), None);
        assert_eq!(network["version"], 2);
        assert_eq!(network["ethernets"]["nic0"]["match"]["macaddress"], "52:54:00:01:02:03");
        assert_eq!(network["ethernets"]["nic0"]["dhcp4"], true);
    }

    #[test]
    fn root_may_log_in_when_asked_for() {
        let [_, user, network] =
            rendered(&CloudInit { user: Some("root".into()), ..CloudInit::default() }, &[]);
        assert_eq!(user["disable_root"], false);
        assert_eq!(user["user"].get("sudo"), None);
        assert!(network["ethernets"].as_mapping().unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_refused_before_a_seed_is_made() {
        let hostname: Name = "web-1".parse().unwrap();
        let cloud_init = CloudInit { ssh_keys: vec!["x\ny".into()], ..CloudInit::default() };
        let input =
            SeedInput { instance_id: "i", hostname: &hostname, cloud_init: &cloud_init, macs: &[] };
        assert!(matches!(build_seed(&input), Err(StorageError::Invalid(_))));
    }

    proptest! {
        /// Rendering alone, without the checks: no text becomes anything but itself.
        #[test]
        fn hostile_texts_stay_texts(
            user in any::<String>(),
            keys in proptest::collection::vec(any::<String>(), 0..4),
            hash in any::<Option<String>>(),
        ) {
            let given = CloudInit {
                user: Some(user.clone()),
                ssh_keys: keys.clone(),
                password_hash: hash.clone(),
                ..CloudInit::default()
            };
            let [_, parsed, _] = rendered(&given, &[]);
            prop_assert_eq!(parsed["user"]["name"].as_str(), Some(user.as_str()));
            prop_assert_eq!(parsed["user"].get("hashed_passwd").and_then(Value::as_str), hash.as_deref());
            let back: Vec<_> = parsed.get("ssh_authorized_keys").and_then(Value::as_sequence)
                .map(|s| s.iter().map(|k| k.as_str().unwrap().to_owned()).collect()).unwrap_or_default();
            prop_assert_eq!(back, keys);
            prop_assert!(parsed.as_mapping().unwrap().len() <= 4);
        }
    }
}
