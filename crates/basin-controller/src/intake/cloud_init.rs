//! Pure. What goes onto a VM's cloud-init seed, checked before it is kept.

use basin_api::vm::CloudInit as Wanted;
use basin_model::task::Problem;
use basin_model::vm::CloudInit;

use crate::app::problems;

const DOCUMENT_MAX: usize = 256 * 1024;
const KEYS_MAX: usize = 64;

pub fn check(wanted: &Wanted) -> Result<CloudInit, Problem> {
    let refuse = |why: String| Err(problems::invalid(format!("cloud_init: {why}")));
    if let Some(user) = &wanted.user
        && !is_user(user)
    {
        return refuse(format!("'{user}' is not a log-in name: 1 to 32 of a-z, 0-9, '_' and '-'"));
    }
    if wanted.ssh_keys.len() > KEYS_MAX {
        return refuse(format!("there are more than {KEYS_MAX} ssh keys"));
    }
    if let Some(bad) = wanted.ssh_keys.iter().find(|key| !is_ssh_key(key)) {
        let start: String = bad.chars().take(40).collect();
        return refuse(format!("'{start}…' is not a public ssh key on one line"));
    }
    if let Some(hash) = &wanted.password_hash
        && !(hash.starts_with('$')
            && hash.len() <= 256
            && hash.chars().all(|c| c.is_ascii_graphic()))
    {
        return refuse(
            "password_hash is not in crypt(5) form; 'openssl passwd -6' makes one".to_owned(),
        );
    }
    let documents = [&wanted.user_data, &wanted.network_config];
    if documents.into_iter().flatten().any(|d| d.len() > DOCUMENT_MAX) {
        return refuse(format!("a document is larger than {DOCUMENT_MAX} bytes"));
    }
    let fields =
        wanted.user.is_some() || !wanted.ssh_keys.is_empty() || wanted.password_hash.is_some();
    if wanted.user_data.is_some() && fields {
        return refuse(
            "user_data replaces user, ssh_keys and password_hash: give one or the other".to_owned(),
        );
    }
    Ok(CloudInit {
        user: wanted.user.clone(),
        ssh_keys: wanted.ssh_keys.iter().map(|k| k.trim().to_owned()).collect(),
        password_hash: wanted.password_hash.clone(),
        user_data: wanted.user_data.clone(),
        network_config: wanted.network_config.clone(),
    })
}

fn is_user(name: &str) -> bool {
    let tail = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let head = |c: char| c.is_ascii_lowercase() || c == '_';
    name.len() <= 32 && name.starts_with(head) && name.chars().all(tail)
}

fn is_ssh_key(text: &str) -> bool {
    let text = text.trim();
    let mut words = text.split(' ');
    let kind = words.next().unwrap_or_default();
    let known = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"].iter().any(|p| kind.starts_with(p));
    let blob = words.next().unwrap_or_default();
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let sound = text.len() <= 16 * 1024 && !text.chars().any(char::is_control);
    sound && known && blob.len() >= 32 && blob.chars().all(base64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7ZWwlCq5dXk0Vn9u3K5h3m1xgq0 me@here";

    fn check_refused(wanted: Wanted, expect: &str) {
        let problem = check(&wanted).unwrap_err();
        assert!(problem.detail.contains(expect), "{}", problem.detail);
    }

    #[test]
    fn a_seed_is_checked_field_by_field() {
        let good = Wanted {
            user: Some("ops".into()),
            ssh_keys: vec![KEY.into()],
            password_hash: Some("$6$salt$hash".into()),
            ..Wanted::default()
        };
        assert_eq!(check(&good).unwrap().ssh_keys, [KEY]);
        check_refused(Wanted { user: Some("Root!".into()), ..Wanted::default() }, "log-in name");
        let two_lines = Wanted { ssh_keys: vec![format!("{KEY}\nroot: x")], ..Wanted::default() };
        check_refused(two_lines, "public ssh key");
        check_refused(Wanted { ssh_keys: vec!["hello".into()], ..Wanted::default() }, "ssh key");
        let plain = Wanted { password_hash: Some("secret".into()), ..Wanted::default() };
        check_refused(plain, "crypt(5)");
        let both = Wanted { user_data: Some("#cloud-config".into()), ..good };
        check_refused(both, "one or the other");
    }
}
