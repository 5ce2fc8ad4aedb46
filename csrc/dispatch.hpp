// Asks the CPU, once, what it can do, and picks a kernel table.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.hpp"

namespace nca {

// Kernel tables of this build that this CPU and operating system can run, slowest first; never empty.
const std::vector<const Kernels*>& available_kernels();

// Those whose products are in half precision: only in use where they are named.
const std::vector<const Kernels*>& half_kernels();

// The table in use: the last one that was selected, else the one that PYNCA_ISA names, else the fastest
// available. Throws std::invalid_argument where PYNCA_ISA names none that there is.
const Kernels& active_kernels();

// Use the named instruction set for rules packed from now on; "" is the fastest.
// Throws std::invalid_argument, which lists the names there are.
void select_kernels(const std::string& name);

} // namespace nca
