// Kernels and threads for an extension that has none of its own: they are borrowed from a host.
#pragma once

#include "../host.hpp"

namespace nca {

// To be called once, before anything else.
void borrow(const Host& host);

} // namespace nca
