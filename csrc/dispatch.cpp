#include "dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(NCA_X86)
#include <cpuid.h>
#endif

namespace nca {

namespace baseline {
extern const Kernels kernels;
}
#if defined(NCA_X86)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif
#if defined(NCA_ARM64)
namespace neon {
extern const Kernels kernels;
}
#endif

namespace {

#if defined(NCA_X86)

// Bits of XCR0: the registers that the operating system saves when it switches between processes. A CPU that
// has AVX under a system that does not save its registers must not use it.
constexpr unsigned kSavesYmm = 0x6;  // SSE, AVX
constexpr unsigned kSavesZmm = 0xe6; // and opmask, upper halves, upper sixteen

unsigned saved_registers() {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool has(unsigned value, unsigned bits) {
    return (value & bits) == bits;
}

void add_x86(std::vector<const Kernels*>& found) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, bit_OSXSAVE | bit_AVX | bit_FMA))
        return;
    if (!has(saved_registers(), kSavesYmm) || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return;
    if (!has(b, bit_AVX2))
        return;
    found.push_back(&avx2::kernels);
    if (has(b, bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL) && has(saved_registers(), kSavesZmm))
        found.push_back(&avx512::kernels);
}

#endif

// The named table, or the fastest where the name is empty.
const Kernels& find_kernels(const std::string& name, const char* asked_by) {
    if (name.empty())
        return *available_kernels().back();
    std::string names;
    for (const Kernels* table : available_kernels()) {
        if (name == table->name)
            return *table;
        names += (names.empty() ? "" : ", ") + std::string(table->name);
    }
    throw std::invalid_argument(std::string(asked_by) + " is '" + name +
                                "'; this CPU and build have the instruction sets " + names);
}

std::atomic<const Kernels*> selected{nullptr};

} // namespace

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> tables = [] {
        std::vector<const Kernels*> found = {&baseline::kernels};
#if defined(NCA_X86)
        add_x86(found);
#elif defined(NCA_ARM64)
        found.push_back(&neon::kernels); // part of every AArch64
#endif
        return found;
    }();
    return tables;
}

const Kernels& active_kernels() {
    if (const Kernels* table = selected.load())
        return *table;
    const char* wanted = std::getenv("PYNCA_ISA");
    const Kernels& table = find_kernels(wanted ? wanted : "", "the environment variable PYNCA_ISA");
    selected.store(&table);
    return table;
}

void select_kernels(const std::string& name) {
    selected.store(&find_kernels(name, "the instruction set"));
}

} // namespace nca
