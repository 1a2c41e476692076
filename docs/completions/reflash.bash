# Made of the rows in src/cli/: UPDATE_DOCS=1 cargo test -p reflash --test command_line
_reflash() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "flash provision verify status report health good after-undo mend request drill update env --help --version" -- "$word")
        return
    fi
    case ${COMP_WORDS[1]} in
    flash)
        case $previous in
        --target)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --url)
            true
            return ;;
        --channel)
            true
            return ;;
        --product)
            true
            return ;;
        --hardware)
            true
            return ;;
        --max-rate)
            true
            return ;;
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "--target --url --channel --product --hardware --max-rate --allow-older --dry-run --no-read-back --json --verbose --state --config --keys -v --help" -- "$word") ;;
    provision)
        case $previous in
        --disk)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --arm)
            mapfile -t COMPREPLY < <(compgen -W "yes" -- "$word")
            return ;;
        --firmware)
            mapfile -t COMPREPLY < <(compgen -W "bios uefi" -- "$word")
            return ;;
        --block-bytes)
            mapfile -t COMPREPLY < <(compgen -W "512 4096" -- "$word")
            return ;;
        --url)
            true
            return ;;
        --channel)
            true
            return ;;
        --product)
            true
            return ;;
        --hardware)
            true
            return ;;
        --max-rate)
            true
            return ;;
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "--disk --arm --firmware --block-bytes --url --channel --product --hardware --max-rate --dry-run --json --verbose --state --config --keys -v --help" -- "$word") ;;
    verify)
        case $previous in
        --target)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "--target --sha256 --json --verbose --state --config --keys -v --help" -- "$word") ;;
    status)
        case $previous in
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "--etc --json --verbose --state --config --keys -v --help" -- "$word") ;;
    report)
        case $previous in
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "--json --verbose --state --config --keys -v --help" -- "$word") ;;
    health)
        case $previous in
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "wait --json --verbose --state --config --keys -v --help" -- "$word") ;;
    good)
        case $previous in
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "--json --verbose --state --config --keys -v --help" -- "$word") ;;
    after-undo)
        case $previous in
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "--json --verbose --state --config --keys -v --help" -- "$word") ;;
    mend)
        case $previous in
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "--json --verbose --state --config --keys -v --help" -- "$word") ;;
    request)
        case $previous in
        --serial)
            true
            return ;;
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "reflash newer undo two-systems one-system factory-reset --serial --json --verbose --state --config --keys -v --help" -- "$word") ;;
    drill)
        case $previous in
        --target)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "check --target --restart --json --verbose --state --config --keys -v --help" -- "$word") ;;
    update)
        case $previous in
        --target)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --store)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "--target --apply --background --store --json --verbose --state --config --keys -v --help" -- "$word") ;;
    env)
        case $previous in
        --state)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        --config)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --keys)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "list set unset --json --verbose --state --config --keys -v --help" -- "$word") ;;
    esac
}
complete -o filenames -F _reflash reflash
