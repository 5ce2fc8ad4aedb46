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

// What available_kernels would be on an x86-64 CPU with these words of CPUID (leaf 1's ecx, leaf 7's ebx)
// under a system that saves these registers (XCR0), of which it is asked where the CPU can tell. Empty on
// other CPUs.
std::vector<const Kernels*> x86_kernels(unsigned features, unsigned extended, unsigned saved);

// Use the named instruction set for rules packed from now on; "" is the fastest.
// Throws std::invalid_argument, which lists the names there are.
void select_kernels(const std::string& name);

} // namespace nca
