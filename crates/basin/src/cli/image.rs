//! `basin image`.

use std::path::Path;

use basin_api::image::{Image, ImageCreate, ImageKind, ImageSource, SourceFormat};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;

use super::error::CliError;
use super::follow::{Wait, bytes_bar};
use super::meta::MetaCommand;
use super::session::Session;
use super::spec::parse_label;
use super::table::Sheet;
use super::text::{age, size};
use super::view::{View, meta_sheet, name, word};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List images
    #[command(visible_alias = "ls")]
    List {
        /// Only those with this label (repeatable; all must be there)
        #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_label)]
        label: Vec<(String, String)>,
    },
    /// Show one in full
    Show { image: String },
    /// Import an image from a file or a URL
    Import(ImportArgs),
    /// Delete an image that no linked clone reads from
    #[command(visible_alias = "rm")]
    Delete {
        image: String,
        #[command(flatten)]
        wait: Wait,
    },
    #[command(flatten)]
    Meta(MetaCommand),
}

#[derive(Debug, Args)]
#[command(after_help = "The format (raw, qcow2, vmdk, vhdx, vdi) is found out from the content.

Examples:
  basin image import debian-12-genericcloud-amd64.qcow2 --name debian-12
  basin image import https://…/debian-12.qcow2 --sha256 8af1…
  basin image import debian-12-netinst.iso
  basin image import /boot/vmlinuz --kind kernel --name linux")]
pub struct ImportArgs {
    /// A file here, or an http:// or https:// URL that the server fetches
    #[arg(value_name = "FILE | URL")]
    source: String,
    /// Its name; made of the file's name when absent
    #[arg(long)]
    name: Option<String>,
    /// What it is for [default: iso for *.iso, else disk]
    #[arg(long, value_enum)]
    kind: Option<KindArg>,
    /// The format, where the content is not to be trusted to tell
    #[arg(long, value_enum)]
    format: Option<SourceFormatArg>,
    /// Refuse the import when the source has another SHA-256
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Where to keep it [default: default]
    #[arg(long)]
    datastore: Option<String>,
    /// Send the file's bytes even to a server on this machine
    #[arg(long)]
    upload: bool,
    /// Words about it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    /// A label (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    Disk,
    Iso,
    Kernel,
    Initrd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceFormatArg {
    Raw,
    Qcow2,
    Vmdk,
    Vhdx,
    Vdi,
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        match self {
            Command::List { label } => session.list::<Image>(&label.into_iter().collect()).await,
            Command::Show { image } => session.show::<Image>(&image).await,
            Command::Import(args) => args.run(session).await,
            Command::Delete { image, wait } => {
                let task = session.client.delete::<Image>(&image).await?;
                session.finish_gone::<Image>(task, wait, &image).await
            }
            Command::Meta(command) => command.run::<Image>(session).await,
        }
    }
}

impl ImportArgs {
    async fn run(self, session: &Session) -> Result<(), CliError> {
        let name = match self.name.clone().or_else(|| name_of(&self.source)) {
            Some(name) => name,
            None => {
                return Err(CliError::usage(
                    format!("no name can be made of '{}'", self.source),
                    "give one with --name",
                ));
            }
        };
        let mut create = ImageCreate {
            name,
            kind: self.kind.map_or_else(|| kind_of(&self.source), ImageKind::from),
            source: self.send(session, self.upload).await?,
            description: self.description.clone(),
            labels: self.label.iter().cloned().collect(),
            format: self.format.map(SourceFormat::from),
            sha256: self.sha256.clone(),
            datastore: self.datastore.clone(),
        };
        let task = match session.client.create::<Image>(&create).await {
            // This server has the file, and another one the datastore.
            Err(error) if error.code() == Some("file-elsewhere") => {
                create.source = self.send(session, true).await?;
                session.client.create::<Image>(&create).await?
            }
            created => created?,
        };
        session.finish::<Image>(task, self.wait, "imported").await
    }

    /// Makes the source one that the server can read.
    async fn send(&self, session: &Session, upload: bool) -> Result<ImageSource, CliError> {
        if is_url(&self.source) {
            return Ok(ImageSource::Url { url: self.source.clone() });
        }
        let file = std::fs::canonicalize(&self.source)
            .map_err(|e| CliError::failed(format!("cannot read {}: {e}", self.source), ""))?;
        if let (true, false, Some(path)) = (session.client.is_local(), upload, file.to_str()) {
            return Ok(ImageSource::Path { path: path.to_owned() });
        }
        let bar = bytes_bar("uploading");
        let shown = bar.clone();
        let upload = session.client.upload(&file, self.datastore.as_deref(), move |sent, total| {
            shown.set_length(total);
            shown.set_position(sent);
        });
        let result = upload.await;
        bar.finish_and_clear();
        Ok(ImageSource::Upload { upload: result?.id })
    }
}

fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// The last part of a path or URL, without what follows a question mark.
fn file_name(source: &str) -> &str {
    let path = if is_url(source) {
        let (_, rest) = source.split_once("://").unwrap_or(("", source));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        rest.split_once('/').map_or("", |(_, path)| path)
    } else {
        source
    };
    Path::new(path).file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

fn kind_of(source: &str) -> ImageKind {
    let is_iso = file_name(source).to_ascii_lowercase().ends_with(".iso");
    if is_iso { ImageKind::Iso } else { ImageKind::Disk }
}

/// A DNS label made of a file's name.
fn name_of(source: &str) -> Option<String> {
    let file = file_name(source).to_ascii_lowercase();
    let stem = file
        .rsplit_once('.')
        .filter(|(_, ext)| ["raw", "img", "qcow2", "vmdk", "vhdx", "vdi", "iso"].contains(ext))
        .map_or(file.as_str(), |(stem, _)| stem);
    let mut name = String::new();
    for c in stem.chars() {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if name.is_empty() || name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    name.truncate(63);
    let name = name.trim_end_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

impl From<KindArg> for ImageKind {
    fn from(arg: KindArg) -> ImageKind {
        match arg {
            KindArg::Disk => ImageKind::Disk,
            KindArg::Iso => ImageKind::Iso,
            KindArg::Kernel => ImageKind::Kernel,
            KindArg::Initrd => ImageKind::Initrd,
        }
    }
}

impl From<SourceFormatArg> for SourceFormat {
    fn from(arg: SourceFormatArg) -> SourceFormat {
        match arg {
            SourceFormatArg::Raw => SourceFormat::Raw,
            SourceFormatArg::Qcow2 => SourceFormat::Qcow2,
            SourceFormatArg::Vmdk => SourceFormat::Vmdk,
            SourceFormatArg::Vhdx => SourceFormat::Vhdx,
            SourceFormatArg::Vdi => SourceFormat::Vdi,
        }
    }
}

impl View for Image {
    const COLUMNS: &[&str] =
        &["NAME", "KIND", "STATE", "SIZE", "FILE", "FORMAT", "DATASTORE", "AGE"];

    fn label(&self) -> &str {
        &self.meta.name
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let content = self.content.as_ref();
        vec![
            self.meta.name.clone(),
            word(&self.kind),
            word(&self.state),
            content.map(|c| size(c.virtual_size_bytes)).unwrap_or_default(),
            content.map(|c| size(c.file_size_bytes)).unwrap_or_default(),
            content.map(|c| c.format.clone()).unwrap_or_default(),
            name(&self.datastore),
            age(now, &self.meta.created_at),
        ]
    }

    fn sheet(&self, now: Timestamp) -> Sheet {
        let mut sheet = meta_sheet(&self.meta, now);
        sheet.pair("Kind", word(&self.kind)).pair("State", word(&self.state));
        if let Some(content) = &self.content {
            sheet
                .pair("Size", size(content.virtual_size_bytes))
                .pair("File", format!("{} ({})", size(content.file_size_bytes), content.format))
                .pair("SHA-256", &content.sha256);
        }
        sheet.pair("Datastore", name(&self.datastore));
        sheet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_kinds() {
        let check = |source: &str, name: &str, kind: ImageKind| {
            assert_eq!(name_of(source).as_deref().unwrap_or(""), name, "{source}");
            assert_eq!(kind_of(source), kind, "{source}");
        };
        check("/srv/Debian-12_genericcloud.qcow2", "debian-12-genericcloud", ImageKind::Disk);
        check("https://x.org/a/b.img?x=y/z.iso", "b", ImageKind::Disk);
        check("https://x.org", "", ImageKind::Disk);
        check("./Win 10 (x64).ISO", "win-10-x64", ImageKind::Iso);
        check("vmlinuz-6.1.0", "vmlinuz-6-1-0", ImageKind::Disk);
        check("___.raw", "", ImageKind::Disk);
        check(&"a.".repeat(80), &format!("{}a", "a-".repeat(31)), ImageKind::Disk);
    }
}
