#include "guest.hpp"

#include <new>
#include <stdexcept>
#include <string>

#include "../dispatch.hpp"
#include "../parallel.hpp"

namespace nca {

namespace {
const Host* lender = nullptr;
}

void borrow(const Host& host) {
    lender = &host;
}

const Kernels& active_kernels() {
    const Kernels* kernels = lender->active_kernels();
    if (!kernels)
        throw std::invalid_argument(
            "the environment variable PYNCA_ISA names no instruction set of this CPU");
    if (kernels->pack)
        throw std::invalid_argument(std::string("the instruction set is ") + kernels->name +
                                    ", which computes in half precision; gradients and training are float32 "
                                    "only: choose another with PYNCA_ISA");
    return *kernels;
}

Team::Team(int threads) : workers_(lender->start_team(threads)) {
    if (!workers_)
        throw std::bad_alloc();
    size_ = lender->team_size(workers_);
}

Team::~Team() {
    lender->end_team(workers_);
}

void Team::run(void (*function)(const void*, int), const void* context, Watch& watch) {
    lender->run_team(workers_, function, context, watch);
}

} // namespace nca
