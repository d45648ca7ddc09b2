//! Pure. From a name or an id to the record.

use basin_model::Meta;
use basin_model::datastore::{Datastore, DatastoreState};
use basin_model::host::Host;
use basin_model::image::{Image, ImageContent, ImageKind, ImageState};
use basin_model::network::Network;
use basin_model::task::{Problem, Task};
use basin_model::vm::Vm;
use basin_model::volume::{Volume, VolumeState};
use basin_store::records::Versioned;

use crate::app::inventory::{Snapshot, Table};
use crate::app::problems;
use crate::app::token::Token;

/// What is called by a name.
pub trait Named {
    const KIND: &'static str;
    fn meta(&self) -> &Meta;
}

macro_rules! named {
    ($($noun:ty = $kind:literal),* $(,)?) => {$(
        impl Named for $noun {
            const KIND: &'static str = $kind;
            fn meta(&self) -> &Meta {
                &self.meta
            }
        }
    )*};
}

named!(
    Vm = "vm",
    Volume = "volume",
    Image = "image",
    Datastore = "datastore",
    Network = "network",
    Host = "host",
    Token = "token",
);

/// Finds by id, else by name. Names never look like ids.
pub fn find<'a, I, T>(table: &'a Table<I, T>, reference: &str) -> Result<&'a Versioned<T>, Problem>
where
    I: std::str::FromStr + Ord,
    T: Named,
{
    let found = match reference.parse::<I>() {
        Ok(id) => table.get(&id),
        Err(_) => table.values().find(|r| r.value.meta().name.as_str() == reference),
    };
    found.ok_or_else(|| problems::not_found(T::KIND, reference))
}

impl Snapshot {
    pub fn vm(&self, reference: &str) -> Result<&Versioned<Vm>, Problem> {
        find(&self.vms, reference)
    }

    pub fn volume(&self, reference: &str) -> Result<&Versioned<Volume>, Problem> {
        find(&self.volumes, reference)
    }

    pub fn image(&self, reference: &str) -> Result<&Versioned<Image>, Problem> {
        find(&self.images, reference)
    }

    pub fn datastore(&self, reference: &str) -> Result<&Versioned<Datastore>, Problem> {
        find(&self.datastores, reference)
    }

    /// A datastore that can be used.
    pub fn ready_datastore(&self, reference: &str) -> Result<&Versioned<Datastore>, Problem> {
        let datastore = self.datastore(reference)?;
        match datastore.value.state {
            DatastoreState::Ready => Ok(datastore),
            DatastoreState::Preparing => Err(not_ready("datastore", reference, "still being made")),
        }
    }

    pub fn network(&self, reference: &str) -> Result<&Versioned<Network>, Problem> {
        find(&self.networks, reference)
    }

    pub fn host(&self, reference: &str) -> Result<&Versioned<Host>, Problem> {
        find(&self.hosts, reference)
    }

    pub fn token(&self, reference: &str) -> Result<&Versioned<Token>, Problem> {
        find(&self.tokens, reference)
    }

    pub fn task(&self, reference: &str) -> Result<&Versioned<Task>, Problem> {
        let found = reference.parse().ok().and_then(|id| self.tasks.get(&id));
        found.ok_or_else(|| problems::not_found("task", reference))
    }

    /// A volume that can be used.
    pub fn ready_volume(&self, reference: &str) -> Result<&Versioned<Volume>, Problem> {
        let volume = self.volume(reference)?;
        match volume.value.state {
            VolumeState::Ready => Ok(volume),
            VolumeState::Creating => Err(not_ready("volume", reference, "still being created")),
            VolumeState::Deleting => Err(not_ready("volume", reference, "being deleted")),
        }
    }

    /// An image of one kind that can be used, and what it holds.
    pub fn ready_image(
        &self,
        reference: &str,
        kind: ImageKind,
    ) -> Result<(&Versioned<Image>, &ImageContent), Problem> {
        let image = self.image(reference)?;
        if image.value.kind != kind {
            return Err(problems::invalid(format!(
                "image '{reference}' is of kind {}, and {} is needed here",
                kind_word(image.value.kind),
                kind_word(kind),
            )));
        }
        match &image.value.state {
            ImageState::Ready { content } => Ok((image, content)),
            ImageState::Importing => Err(not_ready("image", reference, "still being imported")),
            ImageState::Deleting => Err(not_ready("image", reference, "being deleted")),
        }
    }
}

fn not_ready(kind: &str, name: &str, is: &str) -> Problem {
    problems::wrong_state(kind, name, is, "Use another one, or wait.")
}

/// The word of a kind of image, as the API spells it.
pub const fn kind_word(kind: ImageKind) -> &'static str {
    match kind {
        ImageKind::Disk => "disk",
        ImageKind::Iso => "iso",
        ImageKind::Kernel => "kernel",
        ImageKind::Initrd => "initrd",
    }
}

/// For what a record refers to and is not there.
pub fn not_there(kind: &str, id: impl std::fmt::Display) -> Problem {
    problems::not_found(kind, &id.to_string())
}
