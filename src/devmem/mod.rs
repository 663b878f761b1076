//! Device memory and RAM regions by physical address, and who maps what.
