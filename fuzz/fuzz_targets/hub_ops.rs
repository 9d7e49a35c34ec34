//! Any sequence of operations on the types of the hub: they behave as naive models do. Two bytes are one operation and its argument.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast_fuzz::hub_models::{DirectoryModel, HomeModel, MembersModel};

fuzz_target!(|data: &[u8]| {
    let (mut directory, mut members, mut home) = (DirectoryModel::default(), MembersModel::default(), HomeModel::default());
    for &[operation, argument] in data.as_chunks().0 {
        match operation % 3 {
            0 => directory.apply(operation / 3, argument),
            1 => members.apply(operation / 3, argument),
            _ => home.apply(operation / 3, argument),
        }
    }
    members.finish_lap();
});
