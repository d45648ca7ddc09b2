//! Pure. The small languages on the command line: labels, disks, interfaces, ssh keys.

use basin_api::vm::{DiskChoice, NewDisk, NewNic};
use basin_api::volume::{CloneKind, VolumeFormat, VolumeSource};
use clap::ValueEnum;

use super::text::parse_size;

/// `KEY=VALUE`.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

/// A label to set, or one to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelChange(pub String, pub Option<String>);

/// `KEY=VALUE` or `KEY-`.
pub fn parse_label_change(text: &str) -> Result<LabelChange, String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() => {
            Ok(LabelChange(key.to_owned(), Some(value.to_owned())))
        }
        (None, Some(key)) if !key.is_empty() => Ok(LabelChange(key.to_owned(), None)),
        _ => Err("write KEY=VALUE to set a label, or KEY- to remove it".to_owned()),
    }
}

/// How a disk takes its content from an image or a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CloneArg {
    /// At once and small; reads fall through to the source, which has to stay
    Linked,
    /// A copy that stands alone
    Full,
}

impl From<CloneArg> for CloneKind {
    fn from(arg: CloneArg) -> CloneKind {
        match arg {
            CloneArg::Linked => CloneKind::Linked,
            CloneArg::Full => CloneKind::Full,
        }
    }
}

/// How a volume is kept on its datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    Raw,
    Qcow2,
}

impl From<FormatArg> for VolumeFormat {
    fn from(arg: FormatArg) -> VolumeFormat {
        match arg {
            FormatArg::Raw => VolumeFormat::Raw,
            FormatArg::Qcow2 => VolumeFormat::Qcow2,
        }
    }
}

/// `key=value,key,…`, each key at most once.
struct Fields<'a> {
    left: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> Fields<'a> {
    fn parse(text: &'a str) -> Result<Fields<'a>, String> {
        let mut left: Vec<(&str, Option<&str>)> = Vec::new();
        for part in text.split(',') {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (part, None),
            };
            if key.is_empty() || value == Some("") {
                return Err(format!("'{part}' in '{text}' says nothing"));
            }
            if left.iter().any(|(k, _)| *k == key) {
                return Err(format!("'{key}' is there twice"));
            }
            left.push((key, value));
        }
        Ok(Fields { left })
    }

    fn take(&mut self, key: &str) -> Result<Option<&'a str>, String> {
        match self.left.iter().position(|(k, _)| *k == key) {
            None => Ok(None),
            Some(i) => match self.left.remove(i).1 {
                Some(value) => Ok(Some(value)),
                None => Err(format!("'{key}' needs a value: {key}=…")),
            },
        }
    }

    fn flag(&mut self, key: &str) -> Result<bool, String> {
        match self.left.iter().position(|(k, _)| *k == key) {
            None => Ok(false),
            Some(i) => match self.left.remove(i).1 {
                None => Ok(true),
                Some(_) => Err(format!("'{key}' takes no value")),
            },
        }
    }

    fn choice<T: ValueEnum>(&mut self, key: &str) -> Result<Option<T>, String> {
        let Some(value) = self.take(key)? else { return Ok(None) };
        T::from_str(value, false).map(Some).map_err(|_| {
            let known: Vec<_> = T::value_variants()
                .iter()
                .filter_map(|v| v.to_possible_value().map(|p| p.get_name().to_owned()))
                .collect();
            format!("'{key}' is {}, not '{value}'", known.join(" or "))
        })
    }

    fn end(self, known: &str) -> Result<(), String> {
        match self.left.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("'{key}' does not belong here; known are {known}")),
        }
    }
}

/// A disk: `size=20GiB`, `image=NAME[,size=…][,clone=full]`, `from=VOLUME[,…]` (a copy of
/// a volume) or `volume=NAME` (the volume itself).
pub fn parse_disk(text: &str) -> Result<NewDisk, String> {
    let mut fields = Fields::parse(text)?;
    let (volume, image, from) =
        (fields.take("volume")?, fields.take("image")?, fields.take("from")?);
    let read_only = fields.flag("ro")?;
    let serial = fields.take("serial")?.map(str::to_owned);
    if let (Some(volume), None, None) = (volume, image, from) {
        fields.end("volume, ro and serial, for the volume has the rest already")?;
        let disk = DiskChoice::Existing { volume: volume.to_owned() };
        return Ok(NewDisk { disk, read_only, serial });
    }
    let size_bytes = fields.take("size")?.map(parse_size).transpose()?;
    let clone = fields.choice::<CloneArg>("clone")?;
    let source = match (volume, image, from, size_bytes) {
        (None, Some(image), None, size_bytes) => VolumeSource::Image {
            image: image.to_owned(),
            clone: clone.map_or(CloneKind::default(), CloneKind::from),
            size_bytes,
        },
        (None, None, Some(volume), size_bytes) => VolumeSource::Volume {
            volume: volume.to_owned(),
            clone: clone.map_or(CloneKind::default(), CloneKind::from),
            size_bytes,
        },
        (None, None, None, Some(_)) if clone.is_some() => {
            return Err("'clone' needs something to clone: image=… or from=…".to_owned());
        }
        (None, None, None, Some(size_bytes)) => VolumeSource::Blank { size_bytes },
        (None, None, None, None) => {
            return Err("say what it is: size=20GiB, image=NAME, from=VOLUME or volume=NAME".into());
        }
        _ => return Err("volume, image and from exclude each other".to_owned()),
    };
    let format = fields.choice::<FormatArg>("format")?.map(VolumeFormat::from);
    let datastore = fields.take("datastore")?.map(str::to_owned);
    fields.end("size, image, from, volume, clone, format, datastore, serial and ro")?;
    Ok(NewDisk { disk: DiskChoice::New { source, format, datastore }, read_only, serial })
}

/// An interface: `NETWORK[,mac=…][,address=…]`.
pub fn parse_nic(text: &str) -> Result<NewNic, String> {
    let (network, rest) = match text.split_once(',') {
        Some((network, rest)) => (network, Some(rest)),
        None => (text, None),
    };
    if network.is_empty() || network.contains('=') {
        return Err("begin with the network's name: NETWORK[,mac=MAC][,address=IP]".to_owned());
    }
    let mut nic = NewNic { network: network.to_owned(), mac: None, address: None };
    if let Some(rest) = rest {
        let mut fields = Fields::parse(rest)?;
        nic.mac = fields.take("mac")?.map(str::to_owned);
        nic.address = fields.take("address")?.map(str::to_owned);
        fields.end("mac and address")?;
    }
    Ok(nic)
}

/// Whether an argument is a public key itself, not the name of a file with keys.
pub fn is_ssh_key(text: &str) -> bool {
    let kind = text.split_whitespace().next().unwrap_or_default();
    let known = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
    known.iter().any(|k| kind.starts_with(k)) && text.split_whitespace().nth(1).is_some()
}

/// The keys in a file such as `authorized_keys` or `id_ed25519.pub`.
pub fn ssh_keys(file: &str) -> Result<Vec<String>, String> {
    if file.contains("PRIVATE KEY") {
        return Err(
            "it is a private key, which must not leave this machine; give the .pub file".into()
        );
    }
    let lines = file.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let keys: Vec<String> = lines.map(str::to_owned).collect();
    match keys.iter().find(|k| !is_ssh_key(k)) {
        Some(line) => Err(format!("'{line}' in it is not a public key")),
        None if keys.is_empty() => Err("it has no public key".to_owned()),
        None => Ok(keys),
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
