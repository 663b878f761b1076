//! Memory errors: from a raw exception or record to a contained page and a guest that knows.
