//! Virtual machines: description, vCPUs, exits.
